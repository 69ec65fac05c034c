"""Tapestry's shared core: parameter vectors, identity, checkpoints, objectives."""
