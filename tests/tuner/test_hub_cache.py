"""What the hub's cache holds is named without reading weights and without asking the hub."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tuner.hub_cache_folder import COMMITS, HUB_ID, STEM, commit, files
from tuner.hub_cache import CachedWeights, cached_weights
from tuner.models import resolve_model
from tuner.weight_files import weights_digest

FIRST, SECOND = COMMITS


def cached(cache: Path, revision: str | None = None) -> CachedWeights | None:
    return cached_weights(resolve_model(HUB_ID, revision=revision), cache)


def test_the_default_branch_is_named_by_its_commit_and_content(tmp_path: Path) -> None:
    snapshot = commit(tmp_path, FIRST, files())
    assert cached(tmp_path) == CachedWeights(
        HUB_ID, FIRST, weights_digest(snapshot, ["transformer", "vae"])
    )


def test_a_branch_that_moved_names_other_weights(tmp_path: Path) -> None:
    commit(tmp_path, FIRST, files())
    before = cached(tmp_path)
    commit(tmp_path, SECOND, files(b"second"))
    after = cached(tmp_path)
    assert before is not None
    assert after is not None
    assert (before.commit, after.commit) == (FIRST, SECOND)
    assert before.digest != after.digest


def test_a_commit_that_touched_no_weights_changes_nothing(tmp_path: Path) -> None:
    commit(tmp_path, FIRST, files())
    before = cached(tmp_path)
    commit(tmp_path, SECOND, {**files(), "README.md": b"news"})
    after = cached(tmp_path)
    assert before is not None
    assert after is not None
    assert before.digest == after.digest


@pytest.mark.parametrize("revision", [FIRST, "v1.0", "pr/1"])
def test_a_revision_is_a_commit_a_tag_or_a_branch(tmp_path: Path, revision: str) -> None:
    (tmp_path / f"models--{HUB_ID.replace('/', '--')}" / "refs" / "pr").mkdir(parents=True)
    commit(tmp_path, FIRST, files(), branch=None if revision == FIRST else revision)
    commit(tmp_path, SECOND, files(b"second"))
    found = cached(tmp_path, revision)
    assert found is not None
    assert found.commit == FIRST


@pytest.mark.parametrize(
    "changed",
    [
        {"transformer/config.json": b"{}", f"transformer/{STEM}.safetensors": None},
        {
            f"transformer/{STEM}.safetensors": None,
            f"transformer/{STEM}-00001-of-00002.safetensors": b"half",
        },
        {"model_index.json": None},
        {"model_index.json": b"not JSON"},
    ],
    ids=["no weights", "a shard is missing", "no index", "a broken index"],
)
def test_what_is_not_complete_names_nothing(
    tmp_path: Path, changed: dict[str, bytes | None]
) -> None:
    merged = {**files(), **changed}
    commit(tmp_path, FIRST, {name: data for name, data in merged.items() if data is not None})
    assert cached(tmp_path) is None


def test_every_shard_counts(tmp_path: Path) -> None:
    shards = {f"transformer/{STEM}-0000{n}-of-00002.safetensors": bytes([n]) for n in (1, 2)}
    rest = {k: v for k, v in files().items() if k != f"transformer/{STEM}.safetensors"}
    commit(tmp_path, FIRST, {**rest, **shards})
    assert cached(tmp_path) is not None


def test_a_link_to_a_blob_that_was_deleted_names_nothing(tmp_path: Path) -> None:
    snapshot = commit(tmp_path, FIRST, files())
    (snapshot / "transformer" / f"{STEM}.safetensors").resolve().unlink()
    assert cached(tmp_path) is None


def test_copies_are_not_read_to_be_named(tmp_path: Path) -> None:
    """A cache without links: naming its files would mean reading all of them at every question."""
    snapshot = commit(tmp_path, FIRST, files())
    path = snapshot / "transformer" / f"{STEM}.safetensors"
    path.unlink()
    path.write_bytes(b"first")
    assert cached(tmp_path) is None


@pytest.mark.parametrize("text", ["", "main", "../../secrets", "\xff"])
def test_a_ref_that_is_no_commit_names_nothing(tmp_path: Path, text: str) -> None:
    snapshot = commit(tmp_path, FIRST, files())
    (snapshot.parents[1] / "refs" / "main").write_text(text, encoding="latin-1")
    assert cached(tmp_path) is None


def test_nothing_cached_and_nothing_of_the_hub(tmp_path: Path) -> None:
    assert cached(tmp_path) is None
    random = resolve_model("flux-dev", weights="random")
    assert cached_weights(random, tmp_path) is None
