"""Events survive any way the pipe cuts them."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tuner.fake_worker import ENVIRONMENT
from tuner.event_stream import BadEvent, EventStream, OtherProtocol
from tuner.protocol import Hello, Progress, WorkerFailure

HELLO = Hello(tuner_version="0.1.0", environment=ENVIRONMENT, host_baseline_bytes=1, import_s=0.5)
EVENTS = [HELLO, *(Progress(phase="steps", done=done, detail="é\n") for done in range(3))]
BYTES = "".join(event.model_dump_json() + "\n" for event in EVENTS).encode()


@given(st.sets(st.integers(min_value=1, max_value=len(BYTES) - 1), max_size=20))
def test_any_cut_gives_the_same_events(cuts: set[int]) -> None:
    stream = EventStream()
    edges = [0, *sorted(cuts), len(BYTES)]
    pieces = [BYTES[start:end] for start, end in pairwise(edges)]
    assert [event for piece in pieces for event in stream.feed(piece)] == EVENTS


def test_an_unfinished_event_is_none() -> None:
    assert EventStream().feed(BYTES[:20]) == []


def test_a_failure_may_come_first() -> None:
    failure = WorkerFailure(kind="error", message="no torch")
    assert EventStream().feed(failure.model_dump_json().encode() + b"\n") == [failure]


@given(st.binary(min_size=1, max_size=200).filter(lambda data: data.strip() != b""))
def test_any_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(BadEvent):
        EventStream().feed(data.replace(b"\n", b"?") + b"\n")


def test_another_protocol_is_told_apart_from_garbage() -> None:
    with pytest.raises(OtherProtocol) as caught:
        EventStream().feed(b'{"event": "hello", "protocol": 2, "tuner_version": "9", "new": 1}\n')
    assert (caught.value.protocol, caught.value.tuner_version) == (2, "9")
