"""Worker processes give what one process alone would."""

from __future__ import annotations

from itertools import islice

import pytest

from examples.train_tiny.feed import Feed
from examples.train_tiny.scenes import DOMAINS, PLACES


def captions(workers: int, *, name: int = 1) -> list[tuple[str, ...]]:
    with Feed(DOMAINS["narrow"], 7, workers) as feed:
        return [batch.captions for batch in islice(feed.batches(name, 5), 6)]


def test_workers_change_nothing() -> None:
    assert captions(2) == captions(0)


def test_series_differ() -> None:
    assert captions(0) != captions(0, name=2)


@pytest.mark.parametrize("with_held_out", [False, True])
def test_only_the_judge_sees_what_is_held_out(with_held_out: bool) -> None:
    with Feed(DOMAINS["narrow"], 0, 0) as feed:
        batch = next(feed.batches(0, 2000, with_held_out=with_held_out))
    places, colours = batch.groups[:, :, 0].argmax(1), batch.groups[:, :, 3].max(1)
    shown = set(zip(places.tolist(), colours.tolist(), strict=True))
    domain = DOMAINS["narrow"]
    every = len(domain.places) * len(domain.colours)
    assert len(PLACES) > len(set(places.tolist())) == len(domain.places)
    assert (len(shown) == every) == with_held_out
