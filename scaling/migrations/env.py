"""Alembic's entry: runs revisions on the connection that `scaling.database` hands over, inside its transaction."""

from alembic import context

from scaling.schema import VERSION_TABLE, metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    render_as_batch=True,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
