"""Alembic's environment: migrate on the connection that `registry.upgrade` hands over.

The caller holds the write transaction, so a migration is all or nothing and runs once.
"""

from __future__ import annotations

from alembic import context

from registry.schema import METADATA


def run() -> None:
    context.configure(
        connection=context.config.attributes["connection"],
        target_metadata=METADATA,
        compare_type=True,
        transactional_ddl=True,
    )
    with context.begin_transaction():
        context.run_migrations()


run()
