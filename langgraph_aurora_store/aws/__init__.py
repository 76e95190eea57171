"""What all AWS calls share: session, regions and partitions, error codes, SDK logs."""
