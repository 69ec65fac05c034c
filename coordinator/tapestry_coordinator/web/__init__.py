"""The operator's web page: a process of its own that reads the registry and `live.json`."""
