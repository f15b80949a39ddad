"""What a component's call costs at a shape: the profile counted at it, or the nearest one scaled.

A profile is counted on the meta device for each shape of a workload. For another shape (a resolve
for a size that was not tuned) the nearest profile by pixels is scaled: work and activations by the
ratio of pixels times batch, attention by the square of the pixels, text encoders by the batch
alone. The length of the text is taken as unchanged.
"""

from __future__ import annotations

from functools import lru_cache
from math import log

from registry.inventory import (
    ComponentActivity,
    ComponentInventory,
    ModelInventory,
    ShapeProfile,
)
from registry.plan import VaeOptions
from registry.workload import Shape
from tuner.layers import FEW_ROWS


class NoProfile(LookupError):
    """The inventory holds no profile at all, so nothing can be predicted from it."""


def profile_for(inventory: ModelInventory, shape: Shape) -> ShapeProfile:
    """The profile of a shape, scaled from the nearest where it was not counted. Raises NoProfile
    for an inventory without profiles."""
    exact = inventory.profile(shape)
    if exact is not None:
        return exact
    if not inventory.profiles:
        raise NoProfile(f"the inventory of {inventory.pipeline_class} has no profile")
    nearest = min(inventory.profiles, key=lambda item: _distance(item.shape, shape))
    return _scaled(nearest, shape, frozenset(item.name for item in inventory.text_encoders))


def activity_of(
    profile: ShapeProfile, component: ComponentInventory, vae: VaeOptions
) -> ComponentActivity | None:
    """What one call of a component costs; None for one that the request never calls."""
    if component.role == "vae" and vae.tiling and profile.tiled_vae is not None:
        return profile.tiled_vae
    return profile.activity(component.name)


def _pixels(shape: Shape) -> int:
    return shape.height * shape.width * shape.frames


def _distance(known: Shape, wanted: Shape) -> tuple[bool, float]:
    """A profile with the same guidance first: guidance may double the batch inside."""
    ratio = _pixels(known) * known.batch_size / (_pixels(wanted) * wanted.batch_size)
    return known.guidance != wanted.guidance, abs(log(ratio))


@lru_cache(maxsize=256)
def _scaled(profile: ShapeProfile, shape: Shape, texts: frozenset[str]) -> ShapeProfile:
    pixels = _pixels(shape) / _pixels(profile.shape)
    batch = shape.batch_size / profile.shape.batch_size
    tiled = profile.tiled_vae
    return ShapeProfile(
        shape=shape,
        activities=tuple(
            _scale(item, 1.0 if item.component in texts else pixels, batch)
            for item in profile.activities
        ),
        tiled_vae=_scale_tiled(tiled, pixels, batch) if tiled is not None else None,
    )


def _scale(item: ComponentActivity, pixels: float, batch: float) -> ComponentActivity:
    """Layers that see one row per picture grow with the batch alone."""
    whole = pixels * batch
    return item.model_copy(
        update={
            "linear_flops": round(item.linear_flops * whole),
            "convolution_flops": round(item.convolution_flops * whole),
            "attention_flops": round(item.attention_flops * whole * pixels),
            "elementwise_bytes": round(item.elementwise_bytes * whole),
            "activation_peak_bytes": round(item.activation_peak_bytes * whole),
            "linear_rows": {
                name: max(round(rows * (batch if rows <= FEW_ROWS else whole)), 1)
                for name, rows in item.linear_rows.items()
            },
        }
    )


def _scale_tiled(item: ComponentActivity, pixels: float, batch: float) -> ComponentActivity:
    """More tiles, no larger ones: the peak grows with the batch alone."""
    scaled = _scale(item, pixels, batch)
    peak = round(item.activation_peak_bytes * batch * max(1.0, pixels**0.25))
    return scaled.model_copy(update={"activation_peak_bytes": peak})
