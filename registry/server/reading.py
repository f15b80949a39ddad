"""What may be read: records, studies, inventories, and whether the service is well."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from registry.errors import RecordNotFound
from registry.inventory import ModelInventory
from registry.record import Trial
from registry.records import StoredRecord
from registry.server.memory import Answer, Memory
from registry.store import Registry
from registry.studies import StudyRow
from registry.wire import (
    API,
    CandidateQuery,
    Digest,
    Health,
    HistoryQuery,
    InventoryKey,
    Prefix,
    RecordAnswer,
    RecordPage,
    StudyQuery,
    TrialQuery,
    TriedPlan,
    page_json,
    record_json,
)

JSON = "application/json"


class Reading:
    """Every answer that clients ask for again carries an ETag."""

    def __init__(self, registry: Registry) -> None:
        self._registry, self._memory = registry, Memory(registry)

    def router(self) -> APIRouter:
        routes = APIRouter(prefix=API)
        records: list[str | Enum] = ["records"]
        studies: list[str | Enum] = ["studies"]
        routes.get("/health", tags=["service"])(self.health)
        routes.get("/candidates", response_model=RecordPage, tags=records)(self.candidates)
        routes.get("/records", response_model=RecordPage, tags=records)(self.history)
        routes.get("/records/{record_id}", response_model=RecordAnswer, tags=records)(self.record)
        routes.get("/studies", tags=studies)(self.studies)
        routes.get("/studies/{study_id}", tags=studies)(self.study)
        routes.get("/studies/{study_id}/trials", tags=studies)(self.trials)
        routes.get("/plans/{plan_digest}/trials", tags=studies)(self.trials_of_plan)
        routes.get("/inventories", response_model=ModelInventory, tags=["inventories"])(
            self.inventory
        )
        return routes

    def health(self) -> Health:
        """Whether the registry behind the service can be read."""
        self._registry.studies(limit=1)
        return Health()

    def candidates(self, query: Annotated[CandidateQuery, Query()], request: Request) -> Response:
        """Records in service for which every given value is equal, newest publication first."""

        def make() -> Answer:
            found, after = self._registry.candidate_page(query.wanted, query.page)
            return Answer.of(page_json(self._answers(found), after))

        return tagged(request, self._memory.answer(query, make))

    def history(self, query: Annotated[HistoryQuery, Query()], request: Request) -> Response:
        """Records of every status for which every given value is equal, newest publication
        first."""

        def make() -> Answer:
            found, after = self._registry.history_page(query.wanted, query.page)
            return Answer.of(page_json(self._answers(found), after))

        return tagged(request, self._memory.answer(query, make))

    def record(self, record_id: Prefix, request: Request) -> Response:
        """One record, by its id or the first digits of it."""
        (answer,) = self._answers([self._registry.record(record_id)])
        return tagged(request, Answer.of(answer))

    def studies(self, query: Annotated[StudyQuery, Query()]) -> tuple[StudyRow, ...]:
        """Tuning runs, newest first."""
        return self._registry.studies(model_name=query.model_name, limit=query.limit)

    def study(self, study_id: Prefix) -> StudyRow:
        """One tuning run, by its id or the first digits of it."""
        return self._registry.study(study_id)

    def trials(self, study_id: Prefix) -> tuple[Trial, ...]:
        """What a tuning run tried, in order."""
        return self._registry.trials(self._registry.study(study_id).id)

    def trials_of_plan(
        self, plan_digest: Digest, query: Annotated[TrialQuery, Query()]
    ) -> tuple[TriedPlan, ...]:
        """Trials of one plan in whatever study, newest first."""
        found = self._registry.trials_of_plan(plan_digest, limit=query.limit)
        return tuple(TriedPlan(study=study, trial=trial) for study, trial in found)

    def inventory(self, key: Annotated[InventoryKey, Query()], request: Request) -> Response:
        """What a model consists of, under the key that clients make of its name."""
        found = self._registry.inventory(key)
        if found is None:
            raise RecordNotFound(f"there is no inventory {key!r}")
        return tagged(request, Answer.of(found.model_dump_json().encode()))

    def _answers(self, found: Sequence[StoredRecord]) -> list[bytes]:
        named = [item.record.id for item in found if item.record.artifacts]
        signatures = self._registry.artifact_signatures(named) if named else {}
        return [record_json(item, signatures) for item in found]


def tagged(request: Request, answer: Answer) -> Response:
    """JSON with its ETag; nothing but that where the client has it already."""
    headers = {"etag": answer.tag, "cache-control": "private, no-cache"}
    if answer.tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(answer.body, media_type=JSON, headers=headers)
