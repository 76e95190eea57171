"""What several tests share: databases, stores, local services, and how examples are run."""
