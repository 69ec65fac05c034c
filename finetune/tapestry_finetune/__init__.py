"""Localization: a community's own model from the consensus."""
