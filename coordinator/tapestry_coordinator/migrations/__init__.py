"""Revisions of the registry's schema, applied by alembic at start."""
