"""What an app asks for: a model, and the shapes it serves with one loaded pipeline."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from registry.base import Frozen
from registry.digest import digest

ModelSource = Literal["catalog", "hub", "local"]
Weights = Literal["pretrained", "random"]


class ModelRef(Frozen):
    """How a model was named. Its identity for speed and picture is in `ModelInventory`'s digests.

    `name` is a catalog name, a hub id or the folder's own name; a local path never enters a
    record. `revision` is the hub's commit, tag or branch; None is the default branch.
    """

    name: str
    source: ModelSource
    revision: str | None = None
    weights: Weights = "pretrained"


class Shape(Frozen):
    """One picture request: pixels, batch, text length, and whether guidance doubles the batch.

    `text_tokens` None is the pipeline's own default. `weight` is the share of requests, relative.
    """

    height: int = Field(gt=0)
    width: int = Field(gt=0)
    frames: int = Field(default=1, gt=0)
    batch_size: int = Field(default=1, gt=0)
    text_tokens: int | None = Field(default=None, gt=0)
    guidance: bool = True
    weight: float = Field(default=1.0, gt=0)

    @property
    def label(self) -> str:
        """The short form people read: "1024x1024" (width by height), "1024x1024 batch 4"."""
        size = f"{self.width}x{self.height}"
        frames = f" frames {self.frames}" if self.frames > 1 else ""
        return size + frames + (f" batch {self.batch_size}" if self.batch_size > 1 else "")

    def same_request(self, other: Shape) -> bool:
        """Equal in everything but weight."""
        return self.model_copy(update={"weight": 1.0}) == other.model_copy(update={"weight": 1.0})


class Workload(Frozen):
    """The shapes one loaded pipeline serves, in a fixed order without repeats.

    The number of steps and the guidance value are not part of it:
    `latency_s = fixed_s + steps * step_ms / 1000`.
    """

    shapes: tuple[Shape, ...] = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _sorted(cls, data: object) -> object:
        if isinstance(data, dict) and isinstance(data.get("shapes"), list | tuple):
            shapes = [Shape.model_validate(shape) for shape in data["shapes"]]
            order = ("frames", "height", "width", "batch_size", "guidance")
            shapes.sort(key=lambda shape: [getattr(shape, field) for field in order])
            return {**data, "shapes": tuple(shapes)}
        return data

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        for first, second in zip(self.shapes, self.shapes[1:], strict=False):
            if first.same_request(second):
                raise ValueError(f"shape {first.label} is given twice")
        return self

    @property
    def digest(self) -> str:
        return digest(self)

    @property
    def label(self) -> str:
        return ", ".join(shape.label for shape in self.shapes)

    def find(self, shape: Shape) -> Shape | None:
        return next((own for own in self.shapes if own.same_request(shape)), None)
