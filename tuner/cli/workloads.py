"""The sizes of a command line, with the model's own where none were given."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from tuner.shapes import Size, workload_of

if TYPE_CHECKING:
    from registry.workload import Workload
    from tuner.model_spec import ModelSpec


def sizes_for(spec: ModelSpec, resolutions: tuple[Size, ...]) -> tuple[Size, ...]:
    """Raises UsageError where neither the user nor the catalog names a size."""
    if resolutions:
        return resolutions
    if spec.catalog is None:
        raise click.UsageError(
            f"give --resolution: {spec.ref.name!r} is not in the catalog, so it has no default"
        )
    from tuner import catalog

    return (catalog.entry(spec.catalog).default_resolution,)


def workload_for(
    spec: ModelSpec, resolutions: tuple[Size, ...], batch_sizes: tuple[int, ...]
) -> Workload:
    """One workload of every size at every batch size."""
    return workload_of(sizes_for(spec, resolutions), batch_sizes)
