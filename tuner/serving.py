"""The answers of `tuner get-plan` over HTTP, for apps that have no tuner: `curl` is enough.

GET answers for the machine that serves. POST is told the asking machine's environment, as
`tuner doctor --json` prints it. A model is a catalog name or a hub id: no folder of this machine.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import Field

from registry.base import Frozen
from registry.environment import Environment
from registry.errors import InvalidInput
from registry.record import Objective, Policy
from registry.rows import sha256_of
from registry.server.memory import Answer, Fetches, Memory
from registry.server.reading import tagged
from registry.store import Registry
from registry.wire import API, Text
from registry.workload import Weights, Workload
from tuner import catalog
from tuner.answers import Place, PlanAnswer, PlanOptions, answer_at
from tuner.config import Settings
from tuner.detect import Detection, detect
from tuner.hub_cache import cached_weights
from tuner.model_spec import ModelSpec
from tuner.models import resolve_model
from tuner.shapes import MAX_BATCH_SIZE, workload_of
from tuner.units import parse_bytes, parse_resolution

LOOK_AGAIN_S = 30.0
"""How long the serving machine is taken to be as it was found."""
MOST_SIZES = 16
Revision = Annotated[str, Field(max_length=100, pattern=r"^[A-Za-z0-9_-]+([./][A-Za-z0-9_-]+)*$")]
"""A branch, tag or commit, which the hub's cache on this machine is looked through for: no way up
and none from the root."""


class PlanQuestion(Frozen):
    """As the options of `tuner get-plan`; sizes such as "24GB" and "1024x1024". Several
    resolutions and batch sizes are one workload."""

    model: Text
    vram: Text
    resolution: tuple[Text, ...] = Field(default=(), max_length=MOST_SIZES)
    batch_size: tuple[Annotated[int, Field(ge=1, le=MAX_BATCH_SIZE)], ...] = Field(
        default=(1,), min_length=1, max_length=MOST_SIZES
    )
    host_memory: Text | None = None
    weights: Weights = "pretrained"
    revision: Revision | None = None
    policy: Policy = "balanced"
    objective: Objective = "latency"
    strict: bool = False

    @property
    def spec(self) -> ModelSpec:
        return resolve_model(
            self.model, weights=self.weights, revision=self.revision, folders=False
        )

    @property
    def options(self) -> PlanOptions:
        return {
            "host_memory": self.host_memory,
            "weights": self.weights,
            "revision": self.revision,
            "policy": self.policy,
            "objective": self.objective,
            "strict": self.strict,
        }

    def workload(self, spec: ModelSpec) -> Workload:
        """Raises InvalidInput where neither the question nor the catalog names a size."""
        sizes = [parse_resolution(text) for text in self.resolution]
        if not sizes and spec.catalog is None:
            raise InvalidInput(f"give a resolution: {self.model!r} is not in the catalog")
        if not sizes and spec.catalog is not None:
            sizes = [catalog.entry(spec.catalog).default_resolution]
        return workload_of(sizes, self.batch_size)


class LocalQuestion(PlanQuestion):
    """`gpu` is as in `--gpu`; of the machine that serves."""

    gpu: Text | None = None


class RemoteQuestion(PlanQuestion):
    environment: Environment


class PlanRoutes:
    """Looks at this machine, and at the hub's cache on it, at most every `LOOK_AGAIN_S`, by a clock
    that is never set. Answers are remembered for as long, and while the registry is the same."""

    def __init__(
        self,
        registry: Registry,
        settings: Settings,
        fetches: Fetches,
        *,
        monotonic_s: Callable[[], float] = time.monotonic,
        look: Callable[[str | None], Detection] | None = None,
    ) -> None:
        self._registry, self._settings, self._fetches = registry, settings, fetches
        self._monotonic_s = monotonic_s
        self._look = look or (lambda gpu: detect(gpu, settings=settings))
        self._seen: dict[str | None, tuple[float, Detection]] = {}
        self._memory = Memory(registry)

    def router(self) -> APIRouter:
        routes = APIRouter(prefix=API, tags=["plans"])
        routes.get("/plan", response_model=dict[str, Any])(self.here)
        routes.post("/plan", response_model=dict[str, Any])(self.elsewhere)
        return routes

    def here(self, question: Annotated[LocalQuestion, Query()], request: Request) -> Response:
        """The best plan known for the machine that serves, as `tuner get-plan` prints it."""
        detection, seen_at_s = self._detection(question.gpu)

        def make() -> Answer:
            cached = cached_weights(question.spec, self._settings.hub_cache_dir)
            place = Place(self._registry, detection, self._settings, cached)
            return self._answer(place, question)

        return self._told(request, self._memory.answer((question, seen_at_s), make))

    def elsewhere(self, question: RemoteQuestion, request: Request) -> Response:
        """The best plan known for the environment given."""
        detection = Detection(question.environment, None, None, foreign_bytes=0)
        place = Place(self._registry, detection, self._settings)
        told = sha256_of(question.model_dump_json().encode())
        answer = self._memory.answer(told, lambda: self._answer(place, question))
        return self._told(request, answer)

    def _told(self, request: Request, answer: Answer) -> Response:
        if answer.record_id is not None:
            self._fetches.note(answer.record_id)
        return tagged(request, answer)

    def _answer(self, place: Place, question: PlanQuestion) -> Answer:
        answer = self._found(place, question)
        body = json.dumps(answer.to_json(), ensure_ascii=False, separators=(",", ":"))
        return Answer.of(body.encode(), answer.record_id)

    def _found(self, place: Place, question: PlanQuestion) -> PlanAnswer:
        spec = question.spec
        return answer_at(
            place,
            spec,
            parse_bytes(question.vram),
            question.workload(spec),
            question.options,
            asked_as=question.model,
        )

    def _detection(self, gpu: str | None) -> tuple[Detection, float]:
        """And when it was made. Two requests at once may both look; either finds the same."""
        now_s = self._monotonic_s()
        fresh = {name: one for name, one in self._seen.items() if now_s - one[0] <= LOOK_AGAIN_S}
        if gpu not in fresh:
            self._seen = {**fresh, gpu: (now_s, self._look(gpu))}
        seen_at_s, detection = self._seen[gpu]
        return detection, seen_at_s
