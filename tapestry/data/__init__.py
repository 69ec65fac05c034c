"""Corpora: reading, splitting, tokenizing, packing."""
