"""`p2p-node join`: fetches its leases, shares chunks with peers, keeps the files."""
