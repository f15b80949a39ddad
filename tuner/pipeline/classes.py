"""Which classes a model may name: those of two libraries, of kinds that run no code of a folder."""

from __future__ import annotations

import importlib
from typing import Any

from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin
from transformers.feature_extraction_utils import FeatureExtractionMixin
from transformers.image_processing_base import ImageProcessingMixin

from registry.errors import InvalidInput

KINDS: dict[str, tuple[type, ...]] = {
    "diffusers": (ModelMixin, SchedulerMixin),
    "transformers": (
        PreTrainedModel,
        PreTrainedTokenizerBase,
        ProcessorMixin,
        FeatureExtractionMixin,
        ImageProcessingMixin,
    ),
}


def component_class(dotted: str) -> Any:
    """The class named "diffusers.X" or "transformers.X". Raises InvalidInput for anything else."""
    library, _, name = dotted.partition(".")
    if library not in KINDS:
        raise InvalidInput(
            f"{dotted!r} is not a class of {' or '.join(KINDS)}: a model's own code is not run"
        )
    found = getattr(importlib.import_module(library), name, None)
    if found is None:
        raise InvalidInput(f"the installed {library} has no class {name!r}")
    if not isinstance(found, type) or not issubclass(found, KINDS[library]):
        raise InvalidInput(f"{dotted!r} is not a model, scheduler, tokenizer or processor")
    return found


def pipeline_class(name: str) -> Any:
    """The diffusers pipeline class of this name. Raises InvalidInput."""
    found = getattr(importlib.import_module("diffusers"), name, None)
    if not isinstance(found, type) or not issubclass(found, DiffusionPipeline):
        raise InvalidInput(f"the installed diffusers has no pipeline class {name!r}")
    return found
