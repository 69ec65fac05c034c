"""Append-only Merkle trees after RFC 6962."""
