"""Everything that knows the vendor: its wire protocol, its keys and credits, its REST calls."""
