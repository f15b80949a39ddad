"""What an inference app calls: a plan becomes a pipeline, with the artifacts that start it fast."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Unpack

from registry.errors import InvalidInput, TunerError
from registry.plan import Plan
from registry.record import MatchKind, StartRung
from tuner.answers import PlanAnswer, PlanOptions, get_plan
from tuner.start_report import Counted, StartReport, nothing_taken

if TYPE_CHECKING:
    from tuner.pipeline.ahead import Ahead
    from tuner.pipeline.apply import ApplyReport

logger = logging.getLogger("tuner")

UNUSABLE = (TunerError, OSError, RuntimeError, ValueError, EOFError)
"""What a cache that is forged, lost, or of another torch ends in: none may keep an app from
starting."""


class LoadReport(StartReport):
    """What `load` did, kept as `pipe.tuner_report`. `match` says how the plan was found;
    `budget_proved` is True only for an exact match. `start_saved_s` says by how much the artifacts
    brought the first image forward when the plan was proved."""

    match: MatchKind
    plan: str
    record: str | None
    budget_proved: bool
    start_saved_s: float | None = None
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
    code = _use_artifacts(answer)

    from tuner.pipeline import apply as engine

    device = engine.device_of(answer.environment)
    pipe = engine.load(answer.model, answer.plan, device, ahead=code.ahead)
    report = _load_report(answer, code, load_s=time.perf_counter() - start)
    pipe.tuner_report = report.asking(code.counted, partial(engine.peak_vram_bytes, device))
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
    code = _use_artifacts(plan)
    device = engine.device_of(plan.environment)
    report = engine.apply(pipe, plan.plan, device, allow_partial=allow_partial, ahead=code.ahead)
    told = {"artifacts": code.told, "rung": code.rung, "refused": code.refused}
    report = report.model_copy(update={"budget_proved": plan.match == "exact", **told})
    return report.asking(code.counted, partial(engine.peak_vram_bytes, device))


@dataclass(frozen=True)
class _Code:
    """What became of a record's compile artifacts. `refused` says why of each that was not used."""

    is_used: bool = False
    refused: tuple[str, ...] = ()
    counted: Counted = nothing_taken
    ahead: Ahead | None = None

    @property
    def rung(self) -> StartRung:
        if not self.is_used:
            return "compile"
        is_ahead = self.ahead is not None and self.ahead.is_offered
        return "ahead_of_time" if is_ahead else "compile_cache"

    @property
    def told(self) -> str:
        if self.refused:
            return f"refused: {'; '.join(self.refused)}"
        return "loaded" if self.is_used else "none"


def _load_report(answer: PlanAnswer, code: _Code, *, load_s: float) -> LoadReport:
    measured = answer.measurement
    return LoadReport(
        match=answer.match,
        plan=answer.plan.digest,
        record=answer.record_id,
        budget_proved=answer.match == "exact",
        artifacts=code.told,
        rung=code.rung,
        refused=code.refused,
        start_saved_s=measured.start_saved_s if code.is_used and measured else None,
        load_s=load_s,
        notes=answer.notes,
    )


def _use_artifacts(answer: PlanAnswer) -> _Code:
    """Give torch what the record's maker compiled, after its signature was verified. Never raises
    for bad bytes: the plan then compiles as if there were none, and the log says why."""
    if not answer.artifacts_apply or answer.stored is None:
        return _Code()
    kept = [ref for ref in answer.stored.record.artifacts if ref.kind == "compile_cache"]
    if not kept:
        return _Code()
    from tuner.pipeline.artifacts import use_compiled_code

    try:
        taken = [use_compiled_code(answer.trusted_bytes(ref), answer.code_folder) for ref in kept]
    except UNUSABLE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        logger.warning("compile artifacts not used: %s", reason)
        return _Code(refused=(reason,))
    return _Code(is_used=True, counted=taken[0].counted, ahead=taken[0].ahead)
