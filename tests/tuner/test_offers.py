"""What is given out unmeasured: by objective, within both memory budgets, as the policy allows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from registry.environment import Environment
from registry.errors import NoPlan, NothingFits
from registry.plan import Plan
from registry.workload import ModelRef
from tests.tuner.flux import ONE_PICTURE, cpu, flux, h200, shipped
from tuner.candidate import Candidate
from tuner.cost_model import CostModel
from tuner.foresight import Foresight
from tuner.matching import Request
from tuner.memory_model import PROCESS_CPU_BYTES
from tuner.offers import UNMEASURED
from tuner.resolve import resolve
from tuner.space import survey

GB = 10**9


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


def test_an_offer_is_close_to_the_best_of_the_whole_space() -> None:
    model = CostModel(flux(), h200().hardware)
    for gigabytes in (80, 24):
        every = survey(flux(), h200(), ONE_PICTURE, gigabytes * GB, None, model)
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
