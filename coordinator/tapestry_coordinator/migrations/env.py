"""Run by alembic inside the registry's own connection."""

from alembic import context

from tapestry_coordinator.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
