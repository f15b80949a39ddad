"""What is given out unmeasured: by objective, within both memory budgets, as the policy allows."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from registry.base import FrozenDict
from registry.environment import Environment
from registry.errors import NoPlan, NothingFits
from registry.inventory import ModelInventory
from registry.plan import Plan
from registry.workload import ModelRef
from tests.tuner.flux import ONE_PICTURE, cpu, flux, gpu, h200, shipped
from tuner.candidate import Candidate
from tuner.choices import ATTENTION_BACKENDS
from tuner.cost_model import Corrections, CostModel
from tuner.fill import Filler
from tuner.foresight import Foresight
from tuner.matching import Request
from tuner.memory_model import PROCESS_CPU_BYTES
from tuner.objective import Judge
from tuner.offers import (
    CLIPPING,
    PLACEMENTS,
    PLAIN_BACKENDS,
    PLAIN_SCHEMES,
    PLAIN_TEXT_SCHEMES,
    UNMEASURED,
)
from tuner.resolve import resolve
from tuner.rules import RuleBook
from tuner.space import LOSSY_ATTENTION, Restriction, candidates, survey

GB = 10**9
SHRUNK = Corrections(peak=FrozenDict({"resident": 0.6, "streamed_blocks": 0.7}), trials=3)


def request(gigabytes: float, **changes: Any) -> Request:
    asked = {"model": ModelRef(name="flux-dev", source="catalog"), "workload": ONE_PICTURE}
    return Request(**{**asked, "budget_bytes": round(gigabytes * GB), **changes})


def offered(gigabytes: float, environment: Environment | None = None, **changes: Any) -> Candidate:
    offer = Foresight(flux(), environment or h200()).best(request(gigabytes, **changes))
    assert offer.candidate is not None, offer
    return offer.candidate


def schemes(plan: Plan) -> set[str]:
    return {choice.quantization.scheme for choice in plan.pipeline.components.values()}


@pytest.mark.parametrize("gigabytes", [80, 24, 12, 3])
@pytest.mark.parametrize("policy", ["strict", "balanced", "fast"])
def test_what_is_offered_fits_and_is_allowed(gigabytes: float, policy: Any) -> None:
    found = offered(gigabytes, policy=policy)
    assert found.estimate.peak_vram_bytes <= gigabytes * GB
    assert schemes(found.plan) <= UNMEASURED[policy]


def test_a_strict_policy_gets_the_original_numbers_and_is_told() -> None:
    strict = resolve(request(80, policy="strict"), [], h200(), Foresight(flux(), h200()))
    assert schemes(strict.plan) == {"none"}
    assert any("only unquantized" in note for note in strict.notes)
    assert schemes(offered(80).plan) != {"none"}


def test_the_objective_ranks() -> None:
    """Compiling pays off over many requests, not before the first picture."""
    assert offered(80).plan.pipeline.component("transformer").compilation.scope == "regional"
    first = offered(80, objective="first-image").plan
    assert first.pipeline.component("transformer").compilation.scope == "none"


def looked_at_one_by_one(
    inventory: ModelInventory, environment: Environment, asked: Request
) -> Candidate | None:
    """What `Offers.best` says it gives, with every plan made, judged and estimated, and nothing
    shared between them but one restriction."""
    denoiser = inventory.denoiser
    schemes = UNMEASURED[asked.policy]
    plain = Restriction(
        schemes=schemes & PLAIN_SCHEMES,
        text_schemes=schemes & PLAIN_TEXT_SCHEMES,
        attention_backends=PLAIN_BACKENDS,
        scopes=frozenset({"none", "regional" if denoiser.repeated_blocks else "whole"}),
        fuse_qkv=False,
        channels_last=None if denoiser.has_convolutions else False,
        plain_compilation=True,
    )
    if asked.policy == "fast":
        whole = Restriction(schemes, schemes, frozenset(ATTENTION_BACKENDS) - CLIPPING)
    else:
        lossless = frozenset(ATTENTION_BACKENDS) - LOSSY_ATTENTION
        whole = Restriction(schemes, schemes, lossless)
    narrow = (
        replace(plain, placements=frozenset({kind}), vae_tiling=tiling)
        for kind, tiling in product(PLACEMENTS, (False, True))
    )
    found = (best_of_all(inventory, environment, asked, item) for item in (*narrow, whole))
    return next(filter(None, found), None)


def best_of_all(
    inventory: ModelInventory, environment: Environment, asked: Request, restrict: Restriction
) -> Candidate | None:
    model = CostModel(inventory, environment.hardware, cpu_isa=environment.runtime.cpu_isa)
    book, filler = RuleBook(inventory, environment), Filler(inventory, asked.budget_bytes)
    judge = Judge(asked.objective, asked.workload, inventory.default_steps)
    host_bytes = asked.host_budget_bytes or environment.hardware.host_ram_bytes
    best: tuple[float, int, Candidate] | None = None
    for plan in candidates(inventory, environment, restrict=restrict, workload=asked.workload):
        if book.violations(plan):
            continue
        item = Candidate(plan, model.estimate(plan, asked.workload))
        filled = filler.filled(item)
        also = [] if filled is None else [Candidate(filled, model.estimate(filled, asked.workload))]
        for one in (item, *also):
            peak = one.estimate.peak_vram_bytes
            if peak > asked.budget_bytes or one.estimate.host_bytes > host_bytes:
                continue
            value = judge.estimated(one.plan, one.estimate)
            if best is None or (value, peak) < best[:2]:
                best = (value, peak, one)
    return None if best is None else best[2]


LITTLE_HOST = gpu(8, 9, link_bandwidth_class="pcie4x8", host_ram_bytes=24 * GB)
"""Hardly anything of FLUX fits beside a small budget: the whole space is looked at."""


@pytest.mark.parametrize(
    ("name", "environment", "gigabytes", "policy"),
    [
        ("flux-dev", h200(), 80, "balanced"),
        ("flux-dev", h200(), 24, "fast"),
        ("flux-dev", gpu(8, 6), 12, "balanced"),
        ("flux-dev", LITTLE_HOST, 12, "balanced"),
        ("flux-dev", LITTLE_HOST, 8, "fast"),
        ("flux-dev", LITTLE_HOST, 4, "strict"),
        ("flux-dev", cpu(), 25, "balanced"),
        ("sdxl", gpu(7, 5), 8, "balanced"),
        ("sdxl", LITTLE_HOST, 4, "strict"),
        ("tiny-sdxl", h200(), 1, "fast"),
    ],
)
@pytest.mark.parametrize("objective", ["latency", "first-image"])
def test_pruning_loses_nothing(
    name: str, environment: Environment, gigabytes: float, policy: Any, objective: Any
) -> None:
    asked = request(gigabytes, policy=policy, objective=objective)
    found = Foresight(shipped(name), environment).best(asked).candidate
    assert found == looked_at_one_by_one(shipped(name), environment, asked)


@pytest.mark.parametrize(
    ("name", "environment", "gigabytes"),
    [
        ("flux-dev", h200(), 40),
        ("flux-dev", gpu(8, 6), 20),
        ("flux-dev", cpu(), 60),
        ("sdxl", gpu(8, 9), 12),
    ],
)
def test_pruning_loses_nothing_down_to_the_byte(
    name: str, environment: Environment, gigabytes: float
) -> None:
    """Each budget is just what the plan before needs, then a byte less."""
    asked = request(gigabytes)
    for _ in range(5):
        found = Foresight(shipped(name), environment).best(asked).candidate
        assert found is not None
        asked = replace(asked, budget_bytes=found.estimate.peak_vram_bytes)
        exact = Foresight(shipped(name), environment).best(asked).candidate
        assert exact == found == looked_at_one_by_one(shipped(name), environment, asked)
        asked = replace(asked, budget_bytes=asked.budget_bytes - 1)


def test_an_offer_is_close_to_the_best_of_the_whole_space() -> None:
    model, allowed = (
        CostModel(flux(), h200().hardware),
        Restriction(
            schemes=UNMEASURED["fast"], attention_backends=frozenset(ATTENTION_BACKENDS) - CLIPPING
        ),
    )
    for gigabytes in (80, 24):
        every = survey(flux(), h200(), ONE_PICTURE, gigabytes * GB, None, model, allowed)
        found = offered(gigabytes, policy="fast")
        assert found.estimate.latency_s <= 1.05 * every.kept[0].estimate.latency_s


def test_memory_on_a_cpu_is_one_memory() -> None:
    found = offered(80, cpu())
    assert found.estimate.host_bytes == PROCESS_CPU_BYTES + found.estimate.peak_vram_bytes


@pytest.mark.parametrize("environment", [cpu(), h200()], ids=["cpu", "gpu"])
def test_host_memory_is_a_budget_too(environment: Environment) -> None:
    """Named with what would do, and that is then enough."""
    foresight = Foresight(flux(), environment)
    is_cpu = environment.hardware.device == "cpu"
    tight = request(100 if is_cpu else 6, host_budget_bytes=10 * GB)
    offer = foresight.best(tight)
    assert offer.candidate is None
    assert offer.smallest_host_bytes is not None
    with pytest.raises(NothingFits, match="host memory; the smallest needs about"):
        resolve(tight, [], environment, foresight)
    enough = replace(tight, host_budget_bytes=offer.smallest_host_bytes)
    again = foresight.best(enough).candidate
    assert again is not None
    assert again.estimate.host_bytes <= offer.smallest_host_bytes


def test_what_only_a_measurement_could_allow_is_said() -> None:
    """On a CPU only quantization makes a model smaller, and strict wants that measured."""
    foresight = Foresight(flux(), cpu())
    asked = request(25, policy="strict", host_budget_bytes=64 * GB)
    assert foresight.best(request(25, host_budget_bytes=64 * GB)).candidate is not None
    with pytest.raises(NoPlan, match="strict: of plans that nobody measured") as caught:
        resolve(asked, [], cpu(), foresight)
    command = "tuner run --model flux-dev --vram 25GB --resolution 1024x1024"
    assert f"{command} --host-memory 64GB --policy strict" in (caught.value.hint or "")


def test_where_nothing_fits_the_smallest_that_would_is_named() -> None:
    foresight = Foresight(shipped("tiny-flux"), cpu())
    with pytest.raises(NothingFits, match="the smallest that would needs about"):
        resolve(request(0.001), [], cpu(), foresight)


@pytest.mark.parametrize("environment", [cpu(), h200()], ids=["cpu", "gpu"])
@pytest.mark.parametrize("corrections", [Corrections(), SHRUNK], ids=["none", "shrunk"])
def test_no_plan_needs_less_than_its_denoiser_alone(
    environment: Environment, corrections: Corrections
) -> None:
    """What pruning rests on."""
    model = CostModel(flux(), environment.hardware, corrections)
    looked_at = 0
    for plan in candidates(flux(), environment, workload=ONE_PICTURE)[::7]:
        own = plan.pipeline.component("transformer")
        least = model.least_bytes(own, plan.pipeline.dtype, ONE_PICTURE)
        estimate = model.estimate(plan, ONE_PICTURE)
        assert least[0] <= estimate.peak_vram_bytes
        assert least[1] <= estimate.host_bytes
        looked_at += 1
    assert looked_at > 50
