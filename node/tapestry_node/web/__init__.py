"""The node's local page: a process of its own that reads the node's records."""
