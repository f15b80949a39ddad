"""Requests made at random from the service's own description: no server error among the answers,
and none that the description does not know."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, seed, settings
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import content_type_conformance, status_code_conformance

from registry.client import open_registry
from registry.server.app import Options
from registry.server.memory import Fetches
from tests.registry import samples
from tests.registry.conformance import begin
from tests.registry.samples import NOW
from tests.registry.server.serving import Served, served
from tuner.config import load_settings
from tuner.serving import PlanRoutes

EXAMPLES = 2
"""Of each operation, a round."""
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """With everything in it that an id can name, and the routes of `tuner serve`."""
    folder = tmp_path_factory.mktemp("fuzzed")
    registry = open_registry(folder / "registry.sqlite3")
    artifact = registry.put_artifact("log", b"said the worker")
    study = begin(registry)
    registry.add_trial(study.id, samples.trial(log=artifact))
    registry.publish([samples.record(artifacts=(artifact,))], now=NOW)
    settings = load_settings({"TUNER_HOME": str(folder)})
    routes = PlanRoutes(registry, settings, Fetches(registry)).router()
    options = Options(accepts_unsigned=True)
    with served(folder / "registry.sqlite3", folder, options, (routes,)) as found:
        yield found


def test_no_request_is_an_error_of_the_service(service: Served, soak_seed: int) -> None:
    schema = schemathesis.openapi.from_url(f"{service.url}/v1/openapi.json")
    token = {"Authorization": f"Bearer {service.secrets['admin']}"}
    names = known_names(service)
    chance = random.Random(soak_seed)
    tried = 0
    for result in schema.get_all_operations():
        assert isinstance(result, Ok), result
        operation = result.ok()

        @seed(soak_seed)
        @settings(
            max_examples=EXAMPLES,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def run(case: schemathesis.Case[Any]) -> None:
            nonlocal tried
            tried += 1
            for parameter in case.path_parameters or {}:
                if chance.random() < 0.5:
                    case.path_parameters[parameter] = names[parameter]
            case.call_and_validate(headers=token, checks=CHECKS)

        run()
    assert tried >= 20 * EXAMPLES


def known_names(service: Served) -> dict[str, str]:
    (record,) = service.registry.candidates()
    (study,) = service.registry.studies()
    return {
        "record_id": record.record.id,
        "study_id": study.id,
        "plan_digest": record.record.plan.digest,
        "sha256": record.record.artifacts[0].sha256,
    }


def test_the_description_names_every_route(service: Served, tmp_path: Path) -> None:
    with service.client() as client:
        paths = client.get("/v1/openapi.json").json()["paths"]
    assert {path for path in paths if not path.startswith("/v1/")} == set()
    assert sum(len(methods) for methods in paths.values()) == 20
