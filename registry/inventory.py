"""What a model consists of, seen without torch: enough to predict its bytes and its speed."""

from __future__ import annotations

from typing import Literal

from registry.base import Frozen, FrozenMapping
from registry.workload import Shape

Role = Literal["denoiser", "text_encoder", "vae", "other"]


class LinearLayer(Frozen):
    """One `torch.nn.Linear`, by its fully qualified name inside its component."""

    name: str
    in_features: int
    out_features: int
    bias: bool

    @property
    def weight_elements(self) -> int:
        return self.in_features * self.out_features


class RepeatedBlock(Frozen):
    """A class that occurs many times in a denoiser (`_repeated_blocks` of diffusers)."""

    class_name: str
    names: tuple[str, ...]
    weight_elements: int


class ComponentInventory(Frozen):
    """One module of the pipeline.

    `elements` counts every parameter once (tied weights once); `linears` are the layers a scheme
    could quantize; `other_elements` is the rest. `buffer_bytes` are buffers, of any dtype.
    `largest_leaf_elements` and `largest_block_elements` bound what offloading must hold at once.
    """

    name: str
    class_name: str
    role: Role
    elements: int
    other_elements: int
    buffer_bytes: int
    linears: tuple[LinearLayer, ...]
    repeated_blocks: tuple[RepeatedBlock, ...] = ()
    largest_leaf_elements: int
    largest_block_elements: int
    supports_attention_backend: bool = False
    supports_qkv_fusion: bool = False
    has_convolutions: bool = False
    supports_tiling: bool = False
    supports_slicing: bool = False


class ComponentActivity(Frozen):
    """What one call of a component costs at one shape, counted on the meta device.

    FLOPs are multiply-adds times two. `linear_rows` is the number of rows M that each linear
    layer sees in one call, summed over its uses. `activation_peak_bytes` is the peak of live
    tensors beside the weights, inputs included, eager, in a two-byte dtype.
    `masked_attention`: some attention was given a mask, which several backends do not take.
    `calls` is how often one picture request calls it: once per step for a denoiser (1 here means
    "per step"), so a request runs it `steps * calls` times.
    """

    component: str
    calls: int
    linear_flops: int
    convolution_flops: int
    attention_flops: int
    elementwise_bytes: int
    activation_peak_bytes: int
    linear_rows: FrozenMapping[int]
    masked_attention: bool = False


class ShapeProfile(Frozen):
    """One shape's activity of every component; the VAE's again with tiling, where it has any."""

    shape: Shape
    activities: tuple[ComponentActivity, ...]
    tiled_vae: ComponentActivity | None = None

    def activity(self, component: str) -> ComponentActivity | None:
        return next((item for item in self.activities if item.component == component), None)


class ModelInventory(Frozen):
    """Made once by a worker on the meta device; cached per model and library version.

    `architecture` digests component configs and the scheduler; `weights` digests the content
    (for random weights: the architecture and the seed). `resolution_factor` divides every height
    and width the pipeline accepts. `default_steps` is the pipeline's own default. Plans pad prompts
    to `padded_text_tokens`, set where the tokenizer takes less than the pipeline's default.
    """

    pipeline_class: str
    architecture: str
    weights: str
    components: tuple[ComponentInventory, ...]
    profiles: tuple[ShapeProfile, ...]
    resolution_factor: int
    default_steps: int
    default_text_tokens: int | None = None
    max_text_tokens: int | None = None
    padded_text_tokens: int | None = None
    made_with: FrozenMapping[str]

    def component(self, name: str) -> ComponentInventory:
        """Raises KeyError."""
        for component in self.components:
            if component.name == name:
                return component
        raise KeyError(name)

    @property
    def denoiser(self) -> ComponentInventory:
        return next(item for item in self.components if item.role == "denoiser")

    @property
    def text_encoders(self) -> tuple[ComponentInventory, ...]:
        return tuple(item for item in self.components if item.role == "text_encoder")

    @property
    def vae(self) -> ComponentInventory | None:
        return next((item for item in self.components if item.role == "vae"), None)

    def profile(self, shape: Shape) -> ShapeProfile | None:
        return next((item for item in self.profiles if item.shape.same_request(shape)), None)
