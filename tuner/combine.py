"""Every sensible plan for a model on a machine, before rules on pairs of choices and before memory.

A structured product: the denoiser's choices are crossed with each other; compile options, QKV
fusion and layouts only where the denoiser is resident, because elsewhere the link sets the pace.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from itertools import product

from registry.environment import Environment
from registry.inventory import ComponentInventory, ModelInventory
from registry.plan import (
    AttentionBackend,
    Compilation,
    ComponentPlan,
    GroupOffload,
    ModelOffload,
    PipelineOptions,
    Placement,
    Plan,
    ProcessOptions,
    Quantization,
    Resident,
    Scheme,
    SequentialOffload,
    StreamedBlocks,
    VaeOptions,
)
from registry.workload import Workload
from tuner import choices
from tuner.axes import admissible_axes, allows, either
from tuner.choices import Restriction
from tuner.rules import RuleBook

Components = Mapping[str, ComponentPlan]
RECOMPILES = ProcessOptions().dynamo_recompile_limit


def candidates(
    inventory: ModelInventory,
    environment: Environment,
    *,
    restrict: Restriction | None = None,
    workload: Workload | None = None,
    mixed: Sequence[Quantization] = (),
) -> tuple[Plan, ...]:
    """Every plan to consider, without repeats, in a fixed order. `workload` decides dynamic shapes,
    text padding and VAE slicing; None means one shape of one picture. `mixed` are quantizations of
    the denoiser beside the uniform ones."""
    chosen = restrict or Restriction()
    book = RuleBook(inventory, environment)
    maker = PlanMaker(inventory, environment, chosen, workload, book, mixed)
    return (*maker.plans(), *maker.rejected)


def baseline_plans(inventory: ModelInventory, environment: Environment) -> tuple[Plan, ...]:
    """No quantization, no compilation, default attention, in `choices.default_dtype`: the first
    that fits is what every record is compared with. On a CPU only the resident one exists."""
    placements: tuple[Placement, ...] = (Resident(),)
    if environment.hardware.device == "cuda":
        placements += (ModelOffload(), choices.STREAM_LEAF, SequentialOffload())
    dtype = choices.default_dtype(environment)
    return tuple(
        Plan(
            pipeline=PipelineOptions(
                dtype=dtype,
                components=_everywhere(inventory, placement),
                text_tokens=inventory.padded_text_tokens,
            )
        )
        for placement in placements
    )


def _everywhere(inventory: ModelInventory, placement: Placement) -> Components:
    choice = ComponentPlan(placement=placement)
    if placement.kind == "resident":
        return {inventory.denoiser.name: choice}
    return {component.name: choice for component in inventory.components}


class PlanMaker:
    """Builds plans of one model, each only when it is asked for. Equal component choices are one
    object: rules and estimates are remembered by identity.

    `book` holds the rules for this model on this machine; the rest is as in `candidates`, and
    `rejected` are the plans that stand for values which no plan can use. `step_caches` are those
    that the best of the plans may be tried with.
    """

    def __init__(
        self,
        inventory: ModelInventory,
        environment: Environment,
        restrict: Restriction,
        workload: Workload | None,
        book: RuleBook,
        mixed: Sequence[Quantization] = (),
    ) -> None:
        self._inventory = inventory
        self._denoiser = inventory.denoiser
        self._axes = admissible_axes(inventory, environment, restrict, workload, mixed, book)
        self._restrict = restrict
        self._workload = workload
        self._book = book
        self._on_gpu = environment.hardware.device == "cuda"
        self._shared: dict[ComponentPlan, ComponentPlan] = {}
        self.rejected = self._axes.rejected
        self.step_caches = self._axes.step_caches

    def plans(
        self,
        keep: Callable[[ComponentPlan], bool] = lambda _: True,
        among: Callable[[Sequence[AttentionBackend]], Sequence[AttentionBackend]] = tuple,
        *,
        kind: str | None = None,
        tiling: bool | None = None,
    ) -> Iterator[Plan]:
        """All in a fixed order; or those with the denoiser choices that `keep` takes, the attention
        backends that `among` leaves, of one kind of placement, with or without a tiled VAE."""
        vaes = [item for item in self._axes.vaes if item.tiling in either(tiling)]
        backends = among(self._axes.backends)
        for placement in self._axes.placements if vaes else ():
            if kind in {None, placement.kind}:
                for own, others in self._placed(placement, keep):
                    yield from self._pipelines(own, others, backends, vaes)

    def _placed(
        self, placement: Placement, keep: Callable[[ComponentPlan], bool]
    ) -> Iterator[tuple[ComponentPlan, Components]]:
        for layout in self._layouts(placement):
            kept = [own for own in self._own(placement, layout) if keep(own)]
            for others in self._others(placement, layout) if kept else ():
                for own in kept:
                    yield own, others

    def _own(self, placement: Placement, layout: bool) -> Iterator[ComponentPlan]:
        """Every choice for the denoiser at this placement."""
        for compilation, quantization in product(
            self._compilations(placement), self._axes.quantizations
        ):
            own = ComponentPlan(
                quantization=quantization,
                placement=placement,
                compilation=compilation,
                channels_last=layout and self._denoiser.has_convolutions,
            )
            yield self._share(own)

    def _fusions(self, own: ComponentPlan) -> tuple[bool, ...]:
        """The layers of a mixed quantization are named as they are unfused."""
        is_mixed = own.quantization.scheme == "mixed"
        return self._axes.fusions if own.placement.kind == "resident" and not is_mixed else (False,)

    def _pipelines(
        self,
        own: ComponentPlan,
        others: Components,
        backends: Sequence[AttentionBackend],
        vaes: Sequence[VaeOptions],
    ) -> Iterator[Plan]:
        components = {**others, self._denoiser.name: own}
        process = self._process(own.compilation)
        text_tokens = _one_text_length(self._workload, self._inventory)
        fusions = self._fusions(own)
        for backend, fuse, vae in product(backends, fusions, vaes):
            options = PipelineOptions(
                dtype=self._axes.dtype,
                components=components,
                attention_backend=backend,
                fuse_qkv=fuse,
                vae=vae,
                text_tokens=text_tokens,
            )
            yield Plan(process=process, pipeline=options)

    def _layouts(self, placement: Placement) -> tuple[bool, ...]:
        return self._axes.layouts if placement.kind == "resident" else self._axes.layouts[:1]

    def _compilations(self, placement: Placement) -> tuple[Compilation, ...]:
        if placement.kind == "resident":
            return self._axes.compilations
        if isinstance(placement, StreamedBlocks):
            return choices.streamed_compilations(self._axes.compilations)
        scopes = {item.scope for item in self._axes.compilations}
        found = [
            item for item in choices.offloaded_compilations(self._inventory) if item.scope in scopes
        ]
        return tuple(found if _hides_copies(placement) else found[:1])

    def _others(self, denoiser: Placement, layout: bool) -> Iterator[Components]:
        """Choices for every component but the denoiser; those that say nothing are left out."""
        rest = self._rest(denoiser, layout)
        if not self._inventory.text_encoders:
            yield _telling(rest)
            return
        for placement in choices.text_placements(denoiser):
            for scheme in self._text_schemes(placement):
                texts = self._texts(placement, scheme)
                if not self._breaks_a_rule(texts):
                    yield _telling({**texts, **rest})

    def _rest(self, denoiser: Placement, layout: bool) -> Components:
        """The VAE and whatever else there is go with the denoiser, in groups of leaves at most;
        beside a denoiser that streams they stay."""
        streams = isinstance(denoiser, StreamedBlocks)
        placement = Resident() if streams else _by_leaf(denoiser)
        return {
            item.name: self._share(
                ComponentPlan(placement=placement, channels_last=layout and item.has_convolutions)
            )
            for item in self._inventory.components
            if item.role in {"vae", "other"}
        }

    def _text_schemes(self, placement: Placement) -> tuple[Scheme, ...]:
        """Text encoders that libraries move piece by piece are left unquantized."""
        if placement.kind not in {"resident", "release_after_use", "streamed_blocks"}:
            return ("none",)
        wanted = self._restrict.text_schemes
        return tuple(item for item in choices.TEXT_SCHEMES if allows(wanted, item))

    def _texts(self, placement: Placement, scheme: Scheme) -> Components:
        """Text encoders share one placement; the large ones share one scheme."""
        large = {item.name for item in choices.large_text_encoders(self._inventory)}
        return {
            encoder.name: self._share(
                ComponentPlan(
                    quantization=_text_quantization(encoder, scheme, large),
                    placement=_by_leaf(placement),
                )
            )
            for encoder in self._inventory.text_encoders
        }

    def _breaks_a_rule(self, components: Components) -> bool:
        options = PipelineOptions(dtype=self._axes.dtype, components=components)
        return bool(self._book.violations(Plan(pipeline=options)))

    def _share(self, choice: ComponentPlan) -> ComponentPlan:
        return self._shared.setdefault(choice, choice)

    def _process(self, compilation: Compilation) -> ProcessOptions:
        """On a GPU segments grow: whole ones held back 1.2 of 24 GB that a FLUX decode needed."""
        several = self._workload is not None and len(self._workload.shapes) > 1
        limit = several and compilation.scope != "none"
        return ProcessOptions(
            expandable_segments=self._on_gpu,
            dynamo_recompile_limit=choices.MANY_SHAPES_RECOMPILE_LIMIT if limit else RECOMPILES,
        )


def _telling(components: Components) -> Components:
    """Without those that say nothing: equal plans have one digest."""
    plain = ComponentPlan()
    return {name: choice for name, choice in components.items() if choice != plain}


def _text_quantization(
    encoder: ComponentInventory, scheme: Scheme, large: Container[str]
) -> Quantization:
    return choices.text_quantization(encoder, scheme if encoder.name in large else "none")


def _by_leaf(placement: Placement) -> Placement:
    """Only a denoiser has lists of blocks at its top level."""
    if isinstance(placement, GroupOffload) and placement.granularity == "block":
        return GroupOffload(granularity="leaf", stream=placement.stream)
    return placement


def _hides_copies(placement: Placement) -> bool:
    """Whether the denoiser's own speed still shows: it does not where each layer waits for its
    copy."""
    if isinstance(placement, GroupOffload):
        return placement.stream
    return placement.kind == "model_offload"


def _one_text_length(workload: Workload | None, inventory: ModelInventory) -> int | None:
    """The length to pad to where a workload asks for several: one compiled shape serves them. Where
    it asks for none, what the model's tokenizer takes if that is less than the pipeline's own."""
    lengths = {shape.text_tokens for shape in workload.shapes} if workload is not None else {None}
    known = [length for length in lengths if length is not None]
    if not known:
        return inventory.padded_text_tokens
    return max(known) if len(lengths) > 1 and len(known) == len(lengths) else None
