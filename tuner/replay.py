"""Replays: a proved plan once more, in a fresh process, from nothing but what would be published.

What does not repeat itself becomes a failure, and a compile cache that is no use is not published.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace

from registry.errors import UntrustedArtifact
from registry.plan import Plan
from registry.record import ArtifactRef, Estimate, Failure, Measurement, Trial
from registry.store import Registry
from tuner.clock import TimeLimit
from tuner.compiled_code import without_functions
from tuner.desk import Finished, TrialDesk
from tuner.gate import compare_replay

COLD_SHARE = 0.5
"""Of the time left: a cold start is timed only if the warm replay took less than this."""


MOST_TIMING_FAILURES = 2
"""Of one plan's replays in all runs of a study. In each run a replay is tried twice."""


def standing(trials: Iterable[Trial]) -> tuple[Trial, ...]:
    """The trials that a run which goes on takes as they are. A replay that failed by its times
    alone may have met a busy machine: it is left out, and so run again, while that is allowed."""
    known = tuple(trials)
    failed = Counter(trial.plan.digest for trial in known if _failed_by_times(trial))
    given_up = {plan for plan, count in failed.items() if count >= MOST_TIMING_FAILURES}
    return tuple(
        trial for trial in known if not _failed_by_times(trial) or trial.plan.digest in given_up
    )


class Replayer:
    """Replays the plans of one study. `note` takes lines that people should read, `label` says
    a plan in a few words."""

    def __init__(
        self,
        desk: TrialDesk,
        registry: Registry,
        time_limit: TimeLimit,
        note: Callable[[str], None],
        label: Callable[[Plan], str],
    ) -> None:
        self._desk, self._registry = desk, registry
        self._time_limit, self._note, self._label = time_limit, note, label
        self._artifacts: dict[str, ArtifactRef] = {}

    def replay(self, plan: Plan, estimate: Estimate, proof: Measurement | None) -> Finished:
        """Warm, from the captured compile cache if there is one; once more if only its times did
        not repeat or others were at work beside it; then cold if time allows."""
        finished = _held_to_proof(self._warm(plan, estimate), proof)
        doubt = self._doubt(finished.trial)
        if doubt is not None and not self._time_for(finished):
            self._note(f"{self._label(plan)}: no time to replay it once more, {doubt}")
        elif doubt is not None:
            self._note(f"{self._label(plan)}: replayed once more, {doubt}")
            if _failed_by_times(finished.trial):
                self._drop_functions(plan)
            again = _held_to_proof(self._warm(plan, estimate), proof)
            finished = _second_of(finished, again)
        if finished.trial.measurement is None or self.artifact(plan) is None:
            return finished
        return self._with_cold_start(finished, plan, estimate)

    def artifact(self, plan: Plan) -> ArtifactRef | None:
        """The compile cache to publish with the plan; None where there is none of any use.

        It is asked of the study's folder: a run that was killed may have captured it.
        """
        path = self._desk.artifact_path(plan)
        if plan.digest not in self._artifacts and path.is_file():
            self._artifacts[plan.digest] = self._registry.put_artifact("compile_cache", path)
        return self._artifacts.get(plan.digest)

    def _warm(self, plan: Plan, estimate: Estimate) -> Finished:
        artifact = self.artifact(plan)
        finished = self._run(plan, estimate, artifact)
        problem = _artifact_problem(finished) if artifact is not None else None
        if problem is None:
            self._note_misses(plan, finished)
            return finished
        self._drop_artifact(plan, problem)
        if finished.trial.measurement is not None or self._time_limit.is_over:
            return _as_cold(finished)
        return self._run(plan, estimate, None)

    def _drop_functions(self, plan: Plan) -> None:
        """Each call of a function that was compiled ahead of time begins with a look at its block.
        Where Python is what a step waits for, that can be why a plan came out slower."""
        if self.artifact(plan) is None:
            return
        path = self._desk.artifact_path(plan)
        rest = None
        with suppress(UntrustedArtifact):  # whoever takes it finds that out and says so
            rest = without_functions(path.read_bytes())
        if rest is not None:
            path.write_bytes(rest)
            del self._artifacts[plan.digest]
            self._note(f"{self._label(plan)}: nothing compiled ahead of time is published")

    def _note_misses(self, plan: Plan, finished: Finished) -> None:
        measured = finished.trial.measurement
        used = None if measured is None else measured.warm_start
        if used is not None and used.misses:
            what = f"{used.graph_misses} graphs and {used.library_misses} libraries"
            self._note(f"{self._label(plan)}: {what} were not in its compile cache")
        if used is not None and (used.function_misses or used.rung != "ahead_of_time"):
            self._drop_functions(plan)

    def _doubt(self, trial: Trial) -> str | None:
        """Why another replay may come out better; None if none would. Who shares the device has
        said that others may be at work there."""
        if trial.failure is not None:
            return trial.failure.message if _failed_by_times(trial) else None
        if trial.measurement is None or self._desk.request.share:
            return None
        return trial.measurement.contaminated

    def _time_for(self, another: Finished) -> bool:
        remaining_s = self._time_limit.remaining_s
        return remaining_s is None or remaining_s > another.trial.duration_s

    def _run(
        self, plan: Plan, estimate: Estimate, artifact: ArtifactRef | None, *, whole: bool = True
    ) -> Finished:
        limit_s = self._time_limit.remaining_s
        return self._desk.replay(plan, estimate, artifact, whole=whole, limit_s=limit_s)

    def _drop_artifact(self, plan: Plan, problem: str) -> None:
        """For good: the file goes, so that a run that continues this one does not find it."""
        self._note(f"{self._label(plan)}: its compile cache {problem} and is not published")
        del self._artifacts[plan.digest]
        self._desk.artifact_path(plan).unlink()

    def _with_cold_start(self, finished: Finished, plan: Plan, estimate: Estimate) -> Finished:
        remaining_s = self._time_limit.remaining_s
        if remaining_s is not None and remaining_s * COLD_SHARE <= finished.trial.duration_s:
            return finished
        cold = self._run(plan, estimate, None, whole=False)
        if cold.trial.failure is not None:
            self._note(f"{self._label(plan)}: no cold start timed: {cold.trial.failure.message}")
        return _with_cold_start(finished, cold)


def _artifact_problem(finished: Finished) -> str | None:
    """Why a replay's artifact is no good; None also where time or memory ended the replay."""
    if finished.result is not None:
        used = finished.result.measurement.warm_start
        return "saves nothing" if used is None or used.saves_nothing else None
    failure = finished.trial.failure
    if failure is None or failure.kind in ("timeout", "out_of_memory"):
        return None
    return f"broke the start ({failure.kind})"


def _as_cold(finished: Finished) -> Finished:
    """What started with a cache that saved nothing has started without one."""
    measured = finished.trial.measurement
    if measured is None:
        return finished
    update = {
        "cold_first_image_s": measured.warm_first_image_s,
        "warm_first_image_s": None,
        "warm_start": None,
    }
    trial = finished.trial.model_copy(update={"measurement": measured.model_copy(update=update)})
    return replace(finished, trial=trial)


def _held_to_proof(finished: Finished, proof: Measurement | None) -> Finished:
    replayed = finished.trial.measurement
    if replayed is None or proof is None:
        return finished
    repeat = compare_replay(proof, replayed)
    if not repeat.problems:
        return finished
    failure = Failure(
        kind="error" if repeat.substance else "timing",
        message="not reproduced: " + "; ".join(repeat.problems),
    )
    trial = finished.trial.model_copy(update={"failure": failure, "measurement": None})
    return replace(finished, trial=trial)


def _failed_by_times(trial: Trial) -> bool:
    return trial.failure is not None and trial.failure.kind == "timing"


def _second_of(first: Finished, again: Finished) -> Finished:
    """The second replay with the time that both took. The first where the second was cut short, or
    did no better than what was proved beside others."""
    failure = again.trial.failure
    no_better = failure is not None and failure.kind in ("timeout", "timing")
    proved = first.trial.measurement is not None
    cut_short = failure is not None and failure.kind == "timeout"
    stands = first if cut_short or (no_better and proved) else again
    duration_s = first.trial.duration_s + again.trial.duration_s
    return replace(stands, trial=stands.trial.model_copy(update={"duration_s": duration_s}))


def _with_cold_start(finished: Finished, cold: Finished) -> Finished:
    warm, started = finished.trial.measurement, cold.trial.measurement
    if warm is None or started is None:
        return finished
    both = warm.model_copy(update={"cold_first_image_s": started.cold_first_image_s})
    duration_s = finished.trial.duration_s + cold.trial.duration_s
    update = {"measurement": both, "duration_s": duration_s}
    return replace(finished, trial=finished.trial.model_copy(update=update))
