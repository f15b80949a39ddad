"""From a question to a plan through a real registry: every kind of match, and none at all."""

from __future__ import annotations

import shutil
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from registry.client import open_registry
from registry.environment import Environment
from registry.errors import InvalidInput, NoPlan, NothingFits, UnknownModel, UntrustedArtifact
from registry.record import ArtifactRef, Trial, TuningRecord
from registry.signing import SigningKeys
from registry.store import Registry
from registry.workload import ModelRef
from tests.tuner import hub_cache_folder
from tests.tuner.cli import example_registry as example
from tuner import catalog
from tuner.answers import PlanAnswer, get_plan
from tuner.config import load_settings
from tuner.detect import detect
from tuner.hub_cache import cached_weights
from tuner.inventories import inventory_key
from tuner.models import resolve_model


@dataclass(frozen=True)
class Asker:
    """Asks for tiny-flux on this machine's processor; `path` is the registry."""

    path: Path
    registry: Registry
    here: Environment

    def publish(
        self,
        *,
        artifacts: tuple[ArtifactRef, ...] = (),
        keys: SigningKeys | None = None,
        **changes: Any,
    ) -> TuningRecord:
        """A record that matches exactly, but for `changes`."""
        inventory = catalog.shipped_inventory("tiny-flux")
        assert inventory is not None
        exact = {
            "proved_on": self.here,
            "architecture": inventory.architecture,
            "weights": inventory.weights,
        }
        record = example.record("study", example.NOW, **{**exact, **changes})
        record = record.model_copy(update={"artifacts": artifacts})
        self.registry.publish([record], now=example.NOW, keys=keys)
        return record

    def ask(self, vram: str | int = "2GB", size: int = 64, **options: Any) -> PlanAnswer:
        given = {"registry": self.path, "gpu": "cpu", **options}
        return get_plan("tiny-flux", vram=vram, height=size, width=size, **given)


@pytest.fixture
def asker(tmp_path: Path, home: Path) -> Asker:
    path = tmp_path / "plans.db"
    return Asker(path, open_registry(path), detect("cpu").environment)


def test_a_proved_plan_of_this_very_machine(asker: Asker) -> None:
    record = asker.publish()
    answer = asker.ask()
    assert (answer.match, answer.record_id) == ("exact", record.id)
    assert answer.plan == record.plan
    assert answer.measurement == record.measurement


def test_artifacts_are_given_out_once_their_signature_is_verified(asker: Asker) -> None:
    ref = asker.registry.put_artifact("compile_cache", b"compiled")
    asker.publish(artifacts=(ref,), keys=SigningKeys(load_settings().config_dir))
    answer = asker.ask()
    assert answer.artifacts_apply
    assert answer.trusted_bytes(ref) == b"compiled"


def test_artifacts_without_a_signature_stay_where_they_are(asker: Asker) -> None:
    ref = asker.registry.put_artifact("compile_cache", b"compiled")
    asker.publish(artifacts=(ref,))
    with pytest.raises(UntrustedArtifact):
        asker.ask().trusted_bytes(ref)


def test_an_answer_is_counted(asker: Asker) -> None:
    record = asker.publish()
    asker.ask()
    asker.ask()
    assert asker.registry.record(record.id).fetches == 2


def test_another_version_is_stale_and_says_which(asker: Asker) -> None:
    runtime = asker.here.runtime.model_copy(update={"torch": "2.99.0"})
    asker.publish(proved_on=asker.here.model_copy(update={"runtime": runtime}))
    answer = asker.ask()
    assert answer.match == "stale"
    assert any("2.99.0" in text for text in answer.answer.mismatches)
    assert not answer.artifacts_apply


def test_a_fine_tune_is_found_by_its_architecture(asker: Asker) -> None:
    other = ModelRef(name="my-finetune", source="local", weights="pretrained")
    record = asker.publish(model=other, weights="f" * 64)
    answer = asker.ask()
    assert (answer.match, answer.record_id) == ("architecture", record.id)


def test_a_branch_that_moved_is_no_exact_match(asker: Asker, home: Path) -> None:
    """The same name, other weights on this disk: the commit is named."""
    cache = home / "hf" / "hub"
    first, second = hub_cache_folder.COMMITS
    hub_cache_folder.commit(cache, first, hub_cache_folder.files())
    spec = resolve_model(hub_cache_folder.HUB_ID)
    held = cached_weights(spec, cache)
    shipped = catalog.shipped_inventory("tiny-flux")
    assert held is not None
    assert shipped is not None
    counted = shipped.model_copy(update={"weights": held.digest})
    asker.registry.put_inventory(inventory_key(spec), counted, example.NOW)
    asker.publish(model=spec.ref, weights=held.digest)

    def ask() -> PlanAnswer:
        model, path = hub_cache_folder.HUB_ID, asker.path
        return get_plan(model, vram="2GB", height=64, width=64, registry=path, gpu="cpu")

    assert ask().match == "exact"
    hub_cache_folder.commit(cache, second, hub_cache_folder.files(b"others"))
    moved = ask()
    assert moved.match == "architecture"
    assert f"commit {second[:12]} of someone/tiny" in moved.answer.mismatches[0]
    shutil.rmtree(cache)
    assert ask().match == "exact", "nothing on this disk says otherwise"


def test_another_size_is_estimated_from_the_measured_one(asker: Asker) -> None:
    asker.publish()
    answer = asker.ask(size=128)
    assert answer.match == "resolution"
    assert answer.answer.estimate is not None


def test_another_device_proves_nothing(asker: Asker) -> None:
    asker.publish(proved_on=example.environment())
    assert asker.ask().match == "estimated"


def test_what_is_out_of_service_is_not_served(asker: Asker) -> None:
    record = asker.publish()
    asker.registry.revoke(record.id, reason="grey pictures", now=example.NOW)
    assert asker.ask().match == "estimated"


def test_strict_takes_an_exact_match_only(asker: Asker) -> None:
    with pytest.raises(NoPlan):
        asker.ask(strict=True)
    asker.publish()
    assert asker.ask(strict=True).match == "exact"
    with pytest.raises(NoPlan):
        asker.ask(strict=True, size=128)


def test_without_a_registry_the_plan_is_estimated_and_nothing_is_made(home: Path) -> None:
    answer = get_plan("tiny-flux", vram=2 * 10**9, height=64, width=64, gpu="cpu")
    assert (answer.match, answer.record_id, answer.registry) == ("estimated", None, None)
    assert any("there is no registry" in note for note in answer.notes)
    assert list(home.iterdir()) == []
    with pytest.raises(UntrustedArtifact):
        answer.trusted_bytes(ArtifactRef(kind="compile_cache", sha256="0" * 64, size_bytes=1))


def test_a_newer_registry_that_may_only_be_read_still_answers(asker: Asker) -> None:
    record = asker.publish()
    with sqlite3.connect(asker.path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9_0_0'")
    connection.close()
    assert asker.ask().record_id == record.id
    assert open_registry(asker.path, create=False).record(record.id).fetches == 0


def test_nothing_is_known_of_a_model_that_was_never_counted(asker: Asker) -> None:
    with pytest.raises(NoPlan):
        get_plan("a/b", vram="2GB", height=64, width=64, gpu="cpu", registry=asker.path)


@pytest.mark.parametrize(
    ("changes", "error", "named"),
    [
        ({"vram": "24 parsecs"}, InvalidInput, "24 parsecs"),
        ({"vram": "1KB"}, NothingFits, "1.00 KB"),
        ({"height": 63}, InvalidInput, "64x63"),
        ({"batch_size": -1}, InvalidInput, "-1"),
        ({"batch_size": 1025}, InvalidInput, "from 1 to 1024"),
        ({"model": "no-such-model"}, UnknownModel, "no-such-model"),
        ({"host_memory": "much"}, InvalidInput, "much"),
    ],
)
def test_bad_questions_are_refused_by_name(
    asker: Asker, changes: dict[str, Any], error: type[Exception], named: str
) -> None:
    asked = {"model": "tiny-flux", "vram": "2GB", "height": 64, "width": 64, **changes}
    model = asked.pop("model")
    with pytest.raises(error, match=named):
        get_plan(model, registry=asker.path, gpu="cpu", **asked)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"vram": -5}, "-5"),
        ({"vram": True}, "True"),
        ({"vram": 2.5e9}, "2500000000.0"),
        ({"polcy": "strict"}, "polcy"),
        ({"policy": "strct"}, "strct"),
        ({"objective": "speed"}, "speed"),
        ({"weights": "trained"}, "trained"),
        ({"gpu": True}, "gpu True is neither"),
        ({"gpu": 0.5}, "gpu 0.5 is neither"),
    ],
)
def test_a_value_that_cannot_be_used_is_named(
    home: Path, options: dict[str, Any], named: str
) -> None:
    given = {"vram": "2GB", **options}
    with pytest.raises(InvalidInput, match=named):
        get_plan("tiny-flux", height=64, width=64, **given)


def test_a_plan_that_was_measured_as_too_large_is_not_predicted_to_fit(asker: Asker) -> None:
    first = asker.ask(vram="90MB")
    assert first.match == "estimated"
    study = asker.registry.begin_study(
        "identity",
        model=first.model.ref,
        workload=first.workload,
        environment=first.environment,
        request={"budget_bytes": 10**9},
        now=example.NOW,
    )
    measured = example.measurement(5.0, 0.025, 95_000_000)
    trial = Trial(plan=first.plan, rung="pipeline", measurement=measured, started_at=example.NOW)
    asker.registry.add_trial(study.id, trial)
    second = asker.ask(vram="90MB")
    assert second.plan != first.plan
    assert any("it needs 95.0 MB, over the 90.0 MB given" in note for note in second.notes)


def test_the_command_that_would_help_names_the_folder_as_it_was_given(
    asker: Asker, tmp_path: Path
) -> None:
    folder = tmp_path / "my model"
    folder.mkdir()
    (folder / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(NoPlan) as raised:
        get_plan(str(folder), vram="2GB", height=64, width=64, gpu="cpu", registry=asker.path)
    assert f"tuner run --model '{folder}' --vram 2GB" in str(raised.value)
