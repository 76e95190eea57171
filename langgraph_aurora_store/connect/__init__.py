"""From a cluster's name to an authenticated, verified, healthy connection."""
