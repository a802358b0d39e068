"""Alembic's folder: the revisions that bring a results database from any earlier schema to `scaling.schema`."""
