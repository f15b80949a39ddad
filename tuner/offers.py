"""The best plan that may be given out unmeasured, by prediction alone.

Only well-trodden choices are looked at, placement by placement from fast to slow: an app waits for
the answer, and what nobody measured here should be what seldom fails. Where none of them fits, the
whole space is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product

from registry.environment import Environment
from registry.inventory import ModelInventory
from registry.plan import AttentionBackend, ComponentPlan, Dtype, Plan, Scheme, StreamedBlocks
from registry.record import Policy
from tuner.candidate import Candidate, Offer
from tuner.choices import ATTENTION_BACKENDS, SCHEMES, TEXT_SCHEMES, Restriction, default_dtype
from tuner.combine import PlanMaker
from tuner.cost_model import CostModel
from tuner.fill import Filler
from tuner.matching import Request
from tuner.objective import Judge
from tuner.rules import RuleBook
from tuner.space import LOSSY_ATTENTION, survey

UNMEASURED: Mapping[Policy, frozenset[Scheme]] = {
    "strict": frozenset({"none"}),
    "balanced": frozenset({"none", "float8_dynamic_row", "float8_weight_only", "int8_weight_only"}),
    "fast": frozenset({*SCHEMES, *TEXT_SCHEMES}) - {"float8_static_tensor"},
}
"""Schemes whose one-step error is known to be well within the policy's (`tuner.gate`); for a
strict one no quantization's is. A scale that is not made for its input may clip it, on any."""
NOTES: Mapping[Policy, str] = {
    "strict": "policy strict: of plans that nobody measured, only unquantized ones are given out",
    "balanced": "policy balanced: of plans that nobody measured, only those quantized by weight or "
    "to fp8 per row are given out",
}

PLAIN_SCHEMES: frozenset[Scheme] = frozenset(
    {"none", "float8_dynamic_row", "float8_dynamic_tensor", "int8_dynamic", "int8_weight_only"}
)
PLAIN_TEXT_SCHEMES: frozenset[Scheme] = frozenset({"none", "int8_weight_only"})
CLIPPING: frozenset[AttentionBackend] = frozenset({"cudnn_fp8"})
"""Attention at a scale that is not made for its input."""
PLAIN_BACKENDS: frozenset[AttentionBackend] = frozenset({"default", "_native_cudnn"})
PLACEMENTS = ("resident", "model_offload", "group_offload", "sequential_offload")
"""From fast to slow."""


@dataclass(frozen=True)
class Offers:
    """Answers for one model on one machine. `against` says why a plan is not to be offered, of
    those that fit the best predicted first."""

    inventory: ModelInventory
    environment: Environment
    cost_model: CostModel
    against: Callable[[Plan], str | None] | None = None

    def best(self, request: Request) -> Offer:
        """The best by the request's objective, within its budgets and policy."""
        note = NOTES.get(request.policy)
        plain = self._maker(request, self._plain(request.policy))
        for kind, tiling in product(PLACEMENTS, (False, True)):
            found = self._best(request, self._plans(request, plain, kind=kind, tiling=tiling))
            if found is not None:
                return Offer(found, note)
        every = self._maker(request, _allowed(request.policy))
        found = self._best(request, self._plans(request, every))
        return Offer(found, note) if found is not None else self._none(request, note)

    def _plain(self, policy: Policy) -> Restriction:
        """Tiling is free here, though it costs time and touches the picture: it is looked at only
        where nothing fits without."""
        denoiser = self.inventory.denoiser
        return Restriction(
            schemes=UNMEASURED[policy] & PLAIN_SCHEMES,
            text_schemes=UNMEASURED[policy] & PLAIN_TEXT_SCHEMES,
            attention_backends=PLAIN_BACKENDS,
            scopes=frozenset({"none", "regional" if denoiser.repeated_blocks else "whole"}),
            placements=frozenset(PLACEMENTS),
            fuse_qkv=False,
            channels_last=None if denoiser.has_convolutions else False,
            plain_compilation=True,
        )

    def _maker(self, request: Request, restrict: Restriction) -> PlanMaker:
        return PlanMaker(self.inventory, self.environment, restrict, request.workload, self._book)

    def _best(self, request: Request, plans: Iterable[Plan]) -> Candidate | None:
        judge = Judge(request.objective, request.workload, self.inventory.default_steps)

        def order(item: Candidate) -> tuple[float, int]:
            return judge.estimated(item.plan, item.estimate), item.estimate.peak_vram_bytes

        fitting = self._fitting(request, plans)
        if self.against is None:
            return min(fitting, key=order, default=None)
        ranked = sorted(fitting, key=order)
        return next((item for item in ranked if self.against(item.plan) is None), None)

    def _fitting(self, request: Request, plans: Iterable[Plan]) -> Iterator[Candidate]:
        for item in self._candidates(request, plans):
            fits = item.estimate.peak_vram_bytes <= request.budget_bytes
            if fits and item.estimate.host_bytes <= self._host_bytes(request):
                yield item

    def _host_bytes(self, request: Request) -> int:
        return request.host_budget_bytes or self.environment.hardware.host_ram_bytes

    def _candidates(self, request: Request, plans: Iterable[Plan]) -> Iterator[Candidate]:
        """Those that break no rule, streamed ones filled up too, as in a survey."""
        shared = self.cost_model.layers, self.cost_model.weights
        filler = Filler(self.inventory, request.budget_bytes, *shared)
        for plan in plans:
            if self._book.violations(plan):
                continue
            item = Candidate(plan, self.cost_model.estimate(plan, request.workload))
            yield item
            filled = filler.filled(item)
            if filled is not None:
                yield Candidate(filled, self.cost_model.estimate(filled, request.workload))

    def _plans(
        self,
        request: Request,
        maker: PlanMaker,
        *,
        kind: str | None = None,
        tiling: bool | None = None,
    ) -> Iterator[Plan]:
        """Most of a space needs no look at each plan: it is dropped by its denoiser alone."""
        return maker.plans(
            lambda own: self._may_do(own, request),
            self.cost_model.leading_backends,
            kind=kind,
            tiling=tiling,
        )

    def _may_do(self, own: ComponentPlan, request: Request) -> bool:
        """Whether a plan with this choice for its denoiser may fit and break no rule."""
        dtype = default_dtype(self.environment)
        if not self._may_fit(own, dtype, request):
            return False
        return not self._book.of_component(self.inventory.denoiser.name, own, dtype)

    def _may_fit(self, own: ComponentPlan, dtype: Dtype, request: Request) -> bool:
        """One that streams may leave host memory alone once it is filled up."""
        vram_bytes, host_bytes = self.cost_model.least_bytes(own, dtype, request.workload)
        fits = isinstance(own.placement, StreamedBlocks) or host_bytes <= self._host_bytes(request)
        return fits and vram_bytes <= request.budget_bytes

    @cached_property
    def _book(self) -> RuleBook:
        return RuleBook(self.inventory, self.environment, self.cost_model.layers)

    def _none(self, request: Request, note: str | None) -> Offer:
        """Why there is none. Only a question without an answer pays for the whole space."""
        asked = (request.workload, request.budget_bytes, request.host_budget_bytes)
        within = survey(
            *(self.inventory, self.environment, *asked, self.cost_model), _allowed(request.policy)
        )
        free = self._plans(request, self._maker(request, Restriction()))
        every = next(self._fitting(request, free), None)
        return Offer(
            None,
            note,
            smallest_vram_bytes=within.smallest_budget_bytes,
            smallest_host_bytes=within.smallest_host_bytes,
            others_fit=every is not None,
        )


def _allowed(policy: Policy) -> Restriction:
    """All that the policy lets go unmeasured."""
    schemes = UNMEASURED[policy]
    lossy: frozenset[AttentionBackend] = CLIPPING if policy == "fast" else LOSSY_ATTENTION
    backends = frozenset(ATTENTION_BACKENDS) - lossy
    return Restriction(schemes=schemes, text_schemes=schemes, attention_backends=backends)
