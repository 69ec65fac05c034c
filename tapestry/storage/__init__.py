"""Bytes that must survive: atomic files and content-addressed blobs."""
