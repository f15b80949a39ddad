"""What an inference app calls: a plan becomes a pipeline, with the artifacts that start it fast."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Unpack

from registry.base import Frozen
from registry.errors import InvalidInput, RegistryError, UntrustedArtifact
from registry.plan import Plan
from registry.record import MatchKind
from tuner.answers import PlanAnswer, PlanOptions, get_plan

if TYPE_CHECKING:
    from tuner.pipeline.apply import ApplyReport

logger = logging.getLogger("tuner")

UNUSABLE = (UntrustedArtifact, RegistryError, OSError, RuntimeError, ValueError, EOFError)
"""What a cache that is forged, lost, or of another torch ends in: none may keep an app from
starting."""


class LoadReport(Frozen):
    """What `load` did, kept as `pipe.tuner_report`. `match` says how the plan was found;
    `budget_proved` is True only for an exact match. `artifacts` is "loaded", "none" (the plan has
    no use for any, or none was published for this environment) or why they were refused."""

    match: MatchKind
    plan: str
    record: str | None
    budget_proved: bool
    artifacts: str
    load_s: float
    notes: tuple[str, ...] = ()


def load(
    model: str,
    *,
    vram: str | int,
    height: int,
    width: int,
    batch_size: int = 1,
    **options: Unpack[PlanOptions],
) -> Any:
    """`model` as a diffusers pipeline under the best plan known for this machine and budget.

    `vram` is a size such as "24GB", or bytes. `options` are those of `get_plan` (registry, gpu,
    weights, policy, strict …). The weights are loaded layer by layer, so the load too stays within
    the plan's peak. The report is `pipe.tuner_report`.

    Raises what `get_plan` raises, and InvalidPlan where the plan does not fit the model.
    """
    answer = get_plan(
        model, vram=vram, height=height, width=width, batch_size=batch_size, **options
    )
    start = time.perf_counter()
    artifacts = _load_artifacts(answer)

    from tuner.pipeline import apply as engine

    pipe = engine.load(answer.model, answer.plan, engine.device_of(answer.environment))
    pipe.tuner_report = LoadReport(
        match=answer.match,
        plan=answer.plan.digest,
        record=answer.record_id,
        budget_proved=answer.match == "exact",
        artifacts=artifacts,
        load_s=time.perf_counter() - start,
        notes=answer.notes,
    )
    return pipe


def apply(pipe: Any, plan: PlanAnswer | Plan, *, allow_partial: bool = False) -> ApplyReport:
    """Apply an answer of `get_plan`, or a plan, to a pipeline whose weights lie on the CPU.

    Works on any pipeline around the plan's components: text to image, img2img, inpainting, and
    ControlNet, whose own model stays resident and as it is. Raises InvalidInput for what is neither
    plan nor pipeline, InvalidPlan for a plan that this pipeline or machine cannot take, and
    PlanConflict for a pipeline that is already compiled, quantized, hooked or moved, unless
    `allow_partial`. Nothing was changed then.
    """
    if not isinstance(plan, Plan | PlanAnswer):
        raise InvalidInput(
            f"{type(plan).__name__} is not a plan",
            hint="Pass what tuner.get_plan answered, or a plan: registry.plan.parse_plan makes one "
            "of JSON.",
        )
    if not isinstance(getattr(pipe, "components", None), Mapping):
        raise InvalidInput(
            f"{type(pipe).__name__} is not a diffusers pipeline", hint="Pass the pipeline itself."
        )
    from tuner.pipeline import apply as engine

    if isinstance(plan, Plan):
        return engine.apply(pipe, plan, engine.default_device(), allow_partial=allow_partial)
    _load_artifacts(plan)
    device = engine.device_of(plan.environment)
    report = engine.apply(pipe, plan.plan, device, allow_partial=allow_partial)
    return report.model_copy(update={"budget_proved": plan.match == "exact"})


def _load_artifacts(answer: PlanAnswer) -> str:
    """Give torch the record's compile cache, after its signature was verified. Never raises for a
    bad one: the plan then compiles as if there were none, and the log says why."""
    if not answer.artifacts_apply or answer.stored is None:
        return "none"
    caches = [ref for ref in answer.stored.record.artifacts if ref.kind == "compile_cache"]
    if not caches:
        return "none"
    from tuner.pipeline.artifacts import load_compile_cache

    try:
        taken = [load_compile_cache(answer.trusted_path(ref), ref.sha256) for ref in caches]
    except UNUSABLE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        logger.warning("compile cache not used: %s", reason)
        return f"refused: {reason}"
    return "loaded" if all(taken) else "refused: torch did not take it"
