"""From a request and an inventory to baselines, candidates and the search among them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from registry.environment import Environment
from registry.errors import NothingFits
from registry.inventory import ModelInventory
from registry.plan import Plan, Quantization
from registry.record import Trial
from tuner.block_sums import BlockSums
from tuner.candidate import Candidate
from tuner.choices import STEP_CACHES
from tuner.corrections import Corrections, learn
from tuner.cost_model import CostModel
from tuner.mixing import Mixture, mix
from tuner.objective import Judge
from tuner.policies import CACHING
from tuner.publishing import measured
from tuner.request import StudyRequest
from tuner.rules import RuleBook
from tuner.search import Search
from tuner.search.ladder import distinct
from tuner.search.parts import Parts, StepCaches
from tuner.shortage import shortage
from tuner.space import Survey, baseline_plans, survey


class Planning:
    """What is predicted for one request on one machine. `blocks` are timed ones, and count where
    there are corrections: these are learned from bare rooflines. `mixed` are quantizations of the
    denoiser beside the uniform ones."""

    def __init__(
        self,
        request: StudyRequest,
        inventory: ModelInventory,
        environment: Environment,
        *,
        blocks: BlockSums | None = None,
        mixed: Sequence[Quantization] = (),
    ) -> None:
        self._request, self._inventory, self._environment = request, inventory, environment
        self._blocks, self._mixed = blocks, mixed

    def knowing(self, blocks: BlockSums, mixed: Sequence[Quantization]) -> Planning:
        """The same with timed blocks."""
        return Planning(
            self._request, self._inventory, self._environment, blocks=blocks, mixed=mixed
        )

    def survey(self, corrections: Corrections | None = None) -> Survey:
        return survey(
            self._inventory,
            self._environment,
            self._request.workload,
            self._request.budget_bytes,
            self._request.host_budget_bytes,
            self._cost_model(corrections),
            mixed=self._mixed,
        )

    def mixture(
        self, blocks: BlockSums, quantizations: Sequence[Quantization], trials: Sequence[Trial]
    ) -> Mixture | None:
        """The best scheme for each group of layers, if it is better than one for all."""
        return mix(
            blocks,
            quantizations,
            self.survey().kept,
            denoiser=self._inventory.denoiser.name,
            policy=self._request.policy,
            calibrated=self._request.model.ref.weights == "pretrained",
            budget_bytes=self._request.budget_bytes,
            trials=trials,
        )

    @property
    def judge(self) -> Judge:
        """Scores plans as the search among them does."""
        steps = self._request.steps or self._inventory.default_steps
        return Judge(self._request.objective, self._request.workload, steps)

    @property
    def rules(self) -> RuleBook:
        return RuleBook(self._inventory, self._environment)

    @property
    def caps_host(self) -> bool:
        """Whether a trial that needs too much of the host's memory is ended before the host is."""
        return self._request.host_budget_bytes is not None

    def baselines(self) -> tuple[Candidate, ...]:
        """Placements of the unquantized model, the fastest first, whether they fit or not."""
        plans = baseline_plans(self._inventory, self._environment)
        return tuple(self.candidate(plan) for plan in plans)

    def search(self, baseline: Trial) -> Search:
        """Among candidates estimated again with what the baseline and timed blocks taught; nothing
        is told yet."""
        corrections = self.taught_by(baseline)
        reference = self.candidate(baseline.plan, corrections)
        found = self.survey(corrections)
        kept, rules = found.kept, self.rules
        steps = self._request.steps or self._inventory.default_steps
        offered = found.step_caches if self.caches_steps else ()
        ladders = tuple(filter(None, (distinct(ladder, steps) for ladder in offered)))
        caches = StepCaches(ladders, lambda plan: not rules.violations(plan))
        return Search(
            (*kept, *self._known_beside(kept, corrections)) or (reference,),
            objective=self._request.objective,
            workload=self._request.workload,
            steps=steps,
            denoiser=self._inventory.denoiser.name,
            reference=reference,
            budget_bytes=self._request.budget_bytes,
            exhaustive=self._request.exhaustive,
            first=self._request.first,
            parts=Parts(step_caches=caches),
        )

    @property
    def caches_steps(self) -> bool:
        """Whether the search may try step caches, where rules allow them."""
        asked = self._request
        return asked.step_cache and asked.policy in CACHING and not self._is_random

    @property
    def step_cache_note(self) -> str | None:
        """Why none was tried, where neither the user's own choice nor a rule says so."""
        plain = baseline_plans(self._inventory, self._environment)[0]
        offered = not self.rules.violations(plain.caching_steps(STEP_CACHES[0][0]))
        asked = self._request
        if not (offered and self._is_random and asked.step_cache and asked.policy in CACHING):
            return None
        return "no step cache was tried: with random weights its gain and damage mean nothing"

    @property
    def _is_random(self) -> bool:
        return self._request.model.ref.weights == "random"

    def _known_beside(
        self, kept: Sequence[Candidate], corrections: Corrections | None
    ) -> Iterator[Candidate]:
        """The best of an earlier search that today's survey would not offer, such as a mixture of
        schemes, where no rule forbids them and they are predicted to fit."""
        offered = {candidate.plan for candidate in kept}
        first = dict.fromkeys(known.plan.caching_steps(None) for known in self._request.first)
        for plan in first:
            if plan in offered or self.rules.violations(plan):
                continue
            candidate = self.candidate(plan, corrections)
            if candidate.estimate.peak_vram_bytes <= self._request.budget_bytes:
                yield candidate

    def taught_by(self, baseline: Trial) -> Corrections:
        frozen = self.candidate(baseline.plan).estimate
        return learn([(baseline.plan, frozen, measured(baseline))], self._inventory)

    def candidate(self, plan: Plan, corrections: Corrections | None = None) -> Candidate:
        model = self._cost_model(corrections)
        return Candidate(plan, model.estimate(plan, self._request.workload, self._request.steps))

    def _cost_model(self, corrections: Corrections | None) -> CostModel:
        blocks = self._blocks if corrections is not None else None
        isa = self._environment.runtime.cpu_isa
        hardware = self._environment.hardware
        return CostModel(self._inventory, hardware, corrections, cpu_isa=isa, blocks=blocks)


def refuse_if_nothing_fits(found: Survey, request: StudyRequest) -> None:
    """Raises NothingFits, naming the smallest budget that would do."""
    if found.kept:
        return
    raise NothingFits(
        shortage(
            request.model.ref.name,
            request.budget_bytes,
            request.host_budget_bytes,
            found.smallest_budget_bytes,
            found.smallest_host_bytes,
        ),
        hint="`tuner space` shows what each plan needs.",
    )
