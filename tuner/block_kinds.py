"""A denoiser as copies of a few blocks: which there are, how often, and what each is timed as.

Torch-free: kinds and their keys follow from the inventory, so that a timing kept in the registry is
found without starting a worker.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from registry.digest import digest, short
from registry.environment import Environment
from registry.inventory import ComponentActivity, ComponentInventory, LinearLayer
from registry.plan import AttentionBackend, Dtype, LayerScheme, Quantization
from registry.timing import TimingContext, TimingKey
from tuner.layers import scheme_of

LayerSchemes = tuple[tuple[str, LayerScheme], ...]
"""A scheme for each quantized layer of a block, by the layer's name inside the block."""


@dataclass(frozen=True)
class BlockKind:
    """Blocks that run alike: one class, the same layers, the same rows through each.

    `names` are their names in the component, `layers` those of the first; `rows` is what each layer
    sees in one call. `shape` is (batch, image tokens, text tokens): rows a picture of the longest
    sequence in the block and of the shortest that is not one row, 0 where there is none.
    """

    class_name: str
    names: tuple[str, ...]
    layers: tuple[LinearLayer, ...]
    rows: tuple[int, ...]
    shape: tuple[int, int, int]

    def inside(self, layer: LinearLayer) -> str:
        """A layer's name inside its block."""
        return layer.name.removeprefix(f"{self.names[0]}.")

    def schemes(self, quantization: Quantization) -> LayerSchemes:
        """What a quantization makes of the layers of the first block."""
        found = ((self.inside(layer), scheme_of(layer, quantization)) for layer in self.layers)
        return tuple(item for item in found if item[1] != "none")

    def key_name(self, schemes: LayerSchemes) -> str:
        """Class and digest of the layers' shapes, with the scheme of those that have one."""
        by_name = dict(schemes)
        layers = [
            [name, layer.in_features, layer.out_features, layer.bias, by_name.get(name, "none")]
            for layer in self.layers
            for name in (self.inside(layer),)
        ]
        return f"{self.class_name}:{short(digest(layers))}"


@dataclass(frozen=True)
class Bench:
    """Where something is timed, and in which dtype: what all keys of a study share."""

    environment: Environment
    dtype: Dtype

    def block(
        self,
        kind: BlockKind,
        schemes: LayerSchemes = (),
        backend: AttentionBackend = "default",
        context: TimingContext = "compiled",
    ) -> TimingKey:
        """The key of one kind of block under one choice."""
        distinct = {scheme for _, scheme in schemes} or {"none"}
        return TimingKey(
            hardware=self.environment.hardware.digest,
            runtime=self.environment.runtime.digest,
            kind="block",
            name=kind.key_name(schemes),
            shape=kind.shape,
            dtype=self.dtype,
            bias=any(layer.bias for layer in kind.layers),
            scheme=distinct.pop() if len(distinct) == 1 else "mixed",
            attention_backend=backend,
            context=context,
        )

    def linear(self, layer: LinearLayer, rows: int, scheme: LayerScheme) -> TimingKey:
        """The key of a linear layer that sees `rows` rows, compiled."""
        return TimingKey(
            hardware=self.environment.hardware.digest,
            runtime=self.environment.runtime.digest,
            kind="linear",
            name="linear",
            shape=(rows, layer.in_features, layer.out_features),
            dtype=self.dtype,
            bias=layer.bias,
            scheme=scheme,
        )


def block_kinds(
    component: ComponentInventory, activity: ComponentActivity
) -> tuple[BlockKind, ...]:
    """The distinct kinds of a component's repeated blocks at one shape, the most frequent class
    first as the model lists it. Empty for a component that names no repeated blocks."""
    batch = min((rows for rows in activity.linear_rows.values() if rows), default=1)
    owned = _layers_by_block(component)
    alike: dict[tuple[object, ...], list[str]] = {}
    for block in component.repeated_blocks:
        for name in block.names:
            layers = owned.get(name, ())
            if any(activity.linear_rows.get(layer.name, 0) for layer in layers):
                facts = tuple(_facts(name, layer, activity.linear_rows) for layer in layers)
                alike.setdefault((block.class_name, facts), []).append(name)
    return tuple(
        _kind(str(key[0]), tuple(names), owned[names[0]], activity, batch)
        for key, names in alike.items()
    )


def _layers_by_block(component: ComponentInventory) -> dict[str, tuple[LinearLayer, ...]]:
    blocks = {name for block in component.repeated_blocks for name in block.names}
    found: dict[str, list[LinearLayer]] = {}
    for layer in component.linears:
        for owner in _owners(layer.name):
            if owner in blocks:
                found.setdefault(owner, []).append(layer)
    return {name: tuple(layers) for name, layers in found.items()}


def _owners(name: str) -> Iterator[str]:
    """Every module a layer of this name lies in."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def _facts(block: str, layer: LinearLayer, rows: Mapping[str, int]) -> tuple[object, ...]:
    inside = layer.name.removeprefix(f"{block}.")
    return inside, layer.in_features, layer.out_features, layer.bias, rows.get(layer.name, 0)


def _kind(
    class_name: str,
    names: tuple[str, ...],
    layers: tuple[LinearLayer, ...],
    activity: ComponentActivity,
    batch: int,
) -> BlockKind:
    rows = tuple(activity.linear_rows.get(layer.name, 0) for layer in layers)
    sequences = sorted({count // batch for count in rows if count > batch} or {1})
    text = sequences[0] if len(sequences) > 1 else 0
    return BlockKind(class_name, names, layers, rows, (batch, sequences[-1], text))
