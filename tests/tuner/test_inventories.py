"""Which inventory a model has, and when a worker must count again."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest

from registry.client import open_registry
from registry.environment import Runtime
from registry.errors import InvalidInput
from registry.inventory import ModelInventory, ShapeProfile
from registry.store import Registry
from registry.workload import ModelRef, Shape, Workload
from tests.registry import samples
from tuner import catalog
from tuner.hub_cache import CachedWeights
from tuner.inventories import (
    counted_inventory,
    inventories_of,
    inventory_key,
    known_inventory,
    known_weights,
)
from tuner.model_spec import ModelSpec
from tuner.models import resolve_model

NOW = datetime(2026, 11, 23, tzinfo=UTC)
FLUX = Path(__file__).parents[1] / "data" / "flux-dev-inventory.json"
VERSIONS = {"torch": "2.13.0", "diffusers": "0.42.1", "transformers": "5.23.0"}
SPEC = resolve_model("flux-dev", weights="random")


def runtime(**changes: str) -> Runtime:
    others = {"python": "3.11", "torchao": "0.18.0", "accelerate": "1.15.0", "apply_engine": 1}
    return Runtime.model_validate({**others, **VERSIONS, **changes})


@dataclass
class Counter:
    """Stands for the worker: counts exactly the shapes it is asked for, and how often."""

    shapes: tuple[Shape, ...]
    versions: dict[str, str] = field(default_factory=lambda: dict(VERSIONS))
    architecture: str = "a" * 64
    calls: int = 0

    def __call__(self) -> ModelInventory:
        self.calls += 1
        counted = ModelInventory.model_validate_json(FLUX.read_text())
        one = counted.profiles[0]
        profiles = tuple(
            ShapeProfile(shape=shape, activities=one.activities) for shape in self.shapes
        )
        update = {
            "profiles": profiles,
            "made_with": self.versions,
            "architecture": self.architecture,
        }
        return counted.model_copy(update=update)


Count = Callable[..., tuple[ModelInventory, int]]


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return open_registry(tmp_path / "plans.db")


@pytest.fixture
def count(registry: Registry) -> Count:
    """Asks for an inventory at some shapes; gives it and how often a worker counted."""

    def ask(*labels: str, **changes: str) -> tuple[ModelInventory, int]:
        sizes = [tuple(map(int, label.split("x"))) for label in labels]
        shapes = tuple(Shape(width=width, height=height) for width, height in sizes)
        worker = Counter(shapes, {**VERSIONS, **changes})
        found = counted_inventory(
            registry, SPEC, Workload(shapes=shapes), runtime(**changes), take=worker, now=NOW
        )
        return found, worker.calls

    return ask


def sizes(inventory: ModelInventory) -> set[str]:
    return {profile.shape.label for profile in inventory.profiles}


def test_a_model_is_counted_once(count: Count) -> None:
    first, calls = count("512x512")
    assert calls == 1
    assert count("512x512") == (first, 0)


def test_a_new_shape_adds_its_profile(count: Count) -> None:
    count("512x512")
    both, calls = count("1024x1024")
    assert (calls, sizes(both)) == (1, {"512x512", "1024x1024"})
    assert count("512x512", "1024x1024")[1] == 0


def test_other_libraries_count_again_and_keep_nothing_old(count: Count) -> None:
    count("512x512")
    again, calls = count("1024x1024", diffusers="0.43.0")
    assert (calls, sizes(again)) == (1, {"1024x1024"})


def test_another_architecture_keeps_nothing_old(registry: Registry, count: Count) -> None:
    count("512x512")
    shape = Shape(height=64, width=64)
    worker = Counter((shape,), architecture="b" * 64)
    made = counted_inventory(
        registry, SPEC, Workload(shapes=(shape,)), runtime(), take=worker, now=NOW
    )
    assert sizes(made) == {"64x64"}


def test_other_weights_in_the_hubs_cache_are_counted_again(registry: Registry) -> None:
    """A branch that moved: a record made now must not carry the old weights' name."""
    shape = Shape(height=64, width=64)
    worker = Counter((shape,))

    def count_with(digest: str) -> int:
        cached = CachedWeights("black-forest-labs/FLUX.1-dev", "1" * 40, digest)
        counted_inventory(
            *(registry, SPEC, Workload(shapes=(shape,)), runtime()),
            take=worker,
            now=NOW,
            cached=cached,
        )
        return worker.calls

    counted = worker().weights
    assert [count_with(counted), count_with(counted)] == [2, 2]
    assert count_with("f" * 64) == 3


def test_a_size_that_cannot_be_made_is_not_counted_twice(count: Count) -> None:
    count("512x512")
    with pytest.raises(InvalidInput, match="500x512 cannot be made by flux-dev"):
        count("500x512")


def test_what_is_known_does_not_ask_for_versions(registry: Registry, count: Count) -> None:
    assert known_inventory(registry, resolve_model("someone/else")) is None
    assert known_inventory(None, resolve_model("someone/else")) is None
    counted, _ = count("512x512", torch="2.11.0")
    assert known_inventory(registry, SPEC) == counted


def test_models_that_differ_have_keys_that_differ(tmp_path: Path) -> None:
    specs = [
        resolve_model("flux-dev"),
        resolve_model("flux-dev", weights="random"),
        resolve_model("flux-dev", weights="random", seed=1),
        resolve_model("flux-dev", revision="v2"),
        resolve_model("someone/else"),
        folder(tmp_path / "one" / "mine"),
        folder(tmp_path / "two" / "mine", class_name="SanaPipeline"),
    ]
    assert len({inventory_key(spec) for spec in specs}) == len(specs)


def test_a_folder_is_known_by_its_files_and_not_by_its_path(tmp_path: Path) -> None:
    spec = folder(tmp_path / "mine")
    before = inventory_key(spec)
    assert str(tmp_path) not in before
    moved = tmp_path / "elsewhere" / "mine"
    moved.parent.mkdir()
    (tmp_path / "mine").rename(moved)
    assert inventory_key(resolve_model(str(moved))) == before
    os.utime(moved / "model_index.json", ns=(1, 1))
    assert inventory_key(resolve_model(str(moved))) != before


def test_shipped_weights_are_known_by_their_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever they are installed, and whenever; other weights of a later release are others."""
    spec = resolve_model("shapes-flux")
    key, weights = inventory_key(spec), known_weights(None, spec)
    assert weights is not None
    assert weights in key
    monkeypatch.setattr(catalog, "weights_folder", lambda _: tmp_path)
    assert inventory_key(resolve_model("shapes-flux")) == key
    shipped = catalog.shipped_inventory("shapes-flux")
    assert shipped is not None
    retrained = shipped.model_copy(update={"weights": "b" * 64})
    monkeypatch.setattr(catalog, "shipped_inventory", lambda _: retrained)
    assert inventory_key(spec) != key
    assert known_weights(None, spec) == "b" * 64


def test_random_weights_of_a_shipped_model_are_not_the_shipped_ones() -> None:
    random = resolve_model("shapes-flux", weights="random")
    assert known_weights(None, random) is None
    assert known_inventory(None, random) == catalog.shipped_inventory("shapes-flux")
    assert inventory_key(random) != inventory_key(resolve_model("shapes-flux"))


def folder(path: Path, class_name: str = "FluxPipeline") -> ModelSpec:
    path.mkdir(parents=True)
    (path / "model_index.json").write_text(f'{{"_class_name": "{class_name}"}}')
    return resolve_model(str(path))


def test_a_shipped_model_has_no_revisions() -> None:
    with pytest.raises(InvalidInput, match=r"'v2'.*shapes-flux"):
        resolve_model("shapes-flux", revision="v2")


def test_a_model_that_nobody_knows_here_keeps_no_other_back(registry: Registry) -> None:
    tiny = resolve_model("tiny-flux", weights="random")
    registry.put_inventory(inventory_key(tiny), samples.inventory(), samples.NOW)
    strange = ModelRef(name="of a later release", source="catalog", weights="random")
    found = inventories_of(registry, [strange, tiny.ref])
    assert found == {inventory_key(tiny): samples.inventory()}
