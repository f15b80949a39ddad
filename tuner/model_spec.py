"""A model as a worker can build it.

Apart from the protocol, whose other types a mere question for a plan has no use for.
"""

from __future__ import annotations

from registry.base import Frozen
from registry.workload import ModelRef


class ModelSpec(Frozen):
    """How a worker builds the model. `path` is a local diffusers folder; `catalog` names the full
    configs that random weights are made from, and the weights where the catalog ships them; `seed`
    seeds random ones. Else the hub id `ref.name` (or the catalog's) is looked up through
    huggingface_hub."""

    ref: ModelRef
    path: str | None = None
    catalog: str | None = None
    hub_id: str | None = None
    seed: int = 0
