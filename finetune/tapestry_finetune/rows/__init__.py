"""People's own data files as rows: read strictly, every fault named with its line."""
