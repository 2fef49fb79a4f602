"""The compose cluster: the real programs in containers, with faults, every copy compared."""
