"""`tracker serve`: membership, leases, pins, introductions. Soft state: nodes rebuild it."""
