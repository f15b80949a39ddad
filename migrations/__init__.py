"""The history of the registry's schema, one alembic revision a release that changed it."""
