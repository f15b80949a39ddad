"""The answer to get-plan: the fastest proved plan that fits, and how it matches the question.

Pure: stored candidates in, an Answer out. Fetch counts and requests to tune again are the caller's
to write, after the answer is given.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from registry.base import Frozen
from registry.environment import Environment
from registry.errors import NoPlan, NothingFits, TunerError
from registry.plan import Plan
from registry.record import Estimate, MatchKind, Measurement
from registry.records import StoredRecord
from tuner.candidate import Offer
from tuner.matching import Request
from tuner.proofs import Predictions, Proof, Proofs
from tuner.shortage import shortage
from tuner.units import exact_bytes, format_bytes

if TYPE_CHECKING:
    from tuner.experience import Experience

__all__ = ["Answer", "Predictions", "Request", "resolve", "tune_command"]

CAVEATS: Mapping[MatchKind, str] = {
    "architecture": "speed and memory hold for these weights; the picture is unproved",
    "resolution": "memory at these shapes is predicted; compiled code may be made anew",
    "stale": "figures are those of another environment; no artifacts are used",
    "estimated": "nothing was measured: plan and figures are predicted",
}


@dataclass(frozen=True)
class Answer:
    """`record` and `measurement` are None for an estimated plan. `estimate` is for the shapes asked
    where they were not measured. `artifacts_apply`: the record's compiled code fits this very
    environment. `retune_wanted`: a run here would replace this answer by a better known one."""

    match: MatchKind
    plan: Plan
    record: StoredRecord | None = None
    estimate: Estimate | None = None
    mismatches: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    artifacts_apply: bool = False
    retune_wanted: bool = False

    @property
    def measurement(self) -> Measurement | None:
        return None if self.record is None else self.record.record.measurement

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for JSON or YAML."""
        return {
            "match": self.match,
            "plan": self.plan.model_dump(mode="json"),
            "plan_digest": self.plan.digest,
            "measurement": _dump(self.measurement),
            "estimate": _dump(self.estimate),
            "record": None if self.record is None else _record_json(self.record),
            "mismatches": list(self.mismatches),
            "notes": list(self.notes),
            "artifacts_apply": self.artifacts_apply,
            "retune_wanted": self.retune_wanted,
        }


def resolve(
    request: Request,
    stored: Iterable[StoredRecord],
    environment: Environment,
    foresight: Predictions | None,
    experience: Experience | None = None,
) -> Answer:
    """Among proved records within the budget and the policy one that is pinned, else the fastest
    of the best match kind.

    `foresight` None: the model's inventory is unknown. `experience`: what speaks against plans that
    are only predicted. Raises NoPlan where there is no answer (with
    `strict`: none that is exact), and NothingFits where no plan can fit the budget.
    """
    proofs = Proofs(request, environment, foresight)
    found = [proof for item in stored if (proof := proofs.consider(item)) is not None]
    if found:
        exact = [proof for proof in found if proof.match.kind == "exact"]
        fitting = exact if request.strict and exact else found
        best = _answer(min(fitting, key=lambda proof: proof.order), proofs.notes)
        if request.strict and best.match != "exact":
            raise _none_exact(request, best)
        return best
    if request.strict or foresight is None:
        raise _nothing_proved(request, foresight is not None, proofs.notes)
    return _estimated(request, foresight, proofs.notes, experience)


def _answer(proof: Proof, notes: Sequence[str]) -> Answer:
    exact = proof.match.kind == "exact"
    record = proof.stored.record
    return Answer(
        match=proof.match.kind,
        plan=record.plan,
        record=proof.stored,
        estimate=proof.estimate,
        mismatches=proof.match.mismatches,
        notes=(*_caveats(proof), *notes),
        artifacts_apply=exact and bool(record.artifacts),
        retune_wanted=(not exact or proof.drifted) and not proof.is_pinned,
    )


def _caveats(proof: Proof) -> Iterator[str]:
    """What the kind of match means for the figures."""
    if proof.is_pinned:
        yield "pinned: given before all others until `tuner pin --remove`"
    if not proof.stored.record.quality.calibrated:
        yield "the picture was judged with random weights, by SQNR alone"
    record = proof.stored.record
    if record.plan.pipeline.step_cache is not None:
        steps = record.measurement.shapes[0].steps
        yield f"it does not compute every step: speed and picture were proved at {steps} steps"
    contaminated = record.measurement.contaminated
    if contaminated is not None:
        yield f"the figures are not the plan's alone: {contaminated}"
    verification = proof.stored.verification
    if verification is not None and not verification.holds:
        when = f"{verification.verified_at:%Y-%m-%d}"
        yield f"run again on {when} it had drifted: {'; '.join(verification.problems)}"
    if proof.match.kind != "exact":
        yield CAVEATS[proof.match.kind]


def _estimated(
    request: Request,
    foresight: Predictions,
    notes: Sequence[str],
    experience: Experience | None,
) -> Answer:
    offer = foresight.best(request, experience)
    known = () if experience is None else experience.notes
    if offer.candidate is None:
        raise _nothing_to_offer(request, offer, known)
    return Answer(
        match="estimated",
        plan=offer.candidate.plan,
        estimate=offer.candidate.estimate,
        notes=(CAVEATS["estimated"], *((offer.note,) if offer.note else ()), *known, *notes),
        retune_wanted=True,
    )


def _nothing_to_offer(request: Request, offer: Offer, known: Sequence[str]) -> TunerError:
    """Nothing fits, or nothing that may be given out unmeasured does, or all that would was tried
    here in vain."""
    if known:
        return NoPlan(
            f"no plan for {_question(request)}: {'; '.join(known)}",
            hint=f"Look for one with: {tune_command(request)}",
        )
    why = shortage(
        request.model.name,
        request.budget_bytes,
        request.host_budget_bytes,
        offer.smallest_vram_bytes,
        offer.smallest_host_bytes,
    )
    if offer.others_fit:
        return NoPlan(
            f"{why} ({offer.note})", hint=f"Measure the others with: {tune_command(request)}"
        )
    return NothingFits(why, hint="`tuner space` lists every plan with what it needs.")


def _none_exact(request: Request, best: Answer) -> NoPlan:
    return NoPlan(
        f"no exact plan for {_question(request)}; the closest is {best.match}: "
        + "; ".join(best.mismatches),
        hint=f"Without --strict that one is given. To prove one here: {tune_command(request)}",
    )


def _nothing_proved(request: Request, known: bool, notes: Sequence[str]) -> NoPlan:
    reasons = f" ({'; '.join(notes)})" if notes else ""
    unknown = "" if known else ", and the model was never counted here, so none can be predicted"
    return NoPlan(
        f"no plan was proved for {_question(request)}{unknown}{reasons}",
        hint=f"Find one with: {tune_command(request)}",
    )


def tune_command(request: Request) -> str:
    """The `tuner run` that would prove an exact answer."""
    shapes = request.workload.shapes
    sizes = dict.fromkeys(f"{shape.width}x{shape.height}" for shape in shapes)
    batches = dict.fromkeys(shape.batch_size for shape in shapes)
    name = shlex.quote(request.asked_as or request.model.name)
    words = ["tuner run --model", name, "--vram", exact_bytes(request.budget_bytes)]
    words += [f"--resolution {size}" for size in sizes]
    words += [f"--batch-size {size}" for size in batches if list(batches) != [1]]
    words += _beside_defaults(request)
    return " ".join(words)


def _beside_defaults(request: Request) -> Iterator[str]:
    if request.model.weights == "random":
        yield "--weights random"
    if request.host_budget_bytes is not None:
        yield f"--host-memory {exact_bytes(request.host_budget_bytes)}"
    if request.policy != "balanced":
        yield f"--policy {request.policy}"
    if request.objective != "latency":
        yield f"--objective {request.objective}"


def _question(request: Request) -> str:
    budget = format_bytes(request.budget_bytes)
    return f"{request.model.name} at {request.workload.label} in {budget} on this machine"


def _record_json(stored: StoredRecord) -> dict[str, Any]:
    """The record without what stands beside it in the answer, and without single scores."""
    record = stored.record
    body = record.model_dump(
        mode="json", exclude={"plan": True, "measurement": True, "quality": {"scores"}}
    )
    times = {"published_at": stored.published_at.isoformat(), "fetches": stored.fetches}
    return {"id": record.id, "speedup": record.speedup, **body, **times}


def _dump(value: Frozen | None) -> dict[str, Any] | None:
    return None if value is None else value.model_dump(mode="json")
