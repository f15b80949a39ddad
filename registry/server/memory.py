"""Answers that were made before, and fetches that are yet to be counted: reading is most of what a
service does, and a registry seldom changes."""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from datetime import UTC, datetime

from registry.rows import sha256_of
from registry.store import Registry

KEPT_BYTES = 64 << 20
ENTRY_BYTES = 4096
"""What an answer takes beside its body: its question, and its place."""
MOST_COUNTED = 10_000
"""Records that are counted between two writes; who makes up more ids is not counted."""
COUNT_EVERY_S = 10.0


@dataclass(frozen=True)
class Answer:
    """`tag` is the body's digest, quoted as an ETag is. `record_id` is that of the record that is
    given out with it, where it is one."""

    body: bytes
    tag: str
    record_id: str | None = None

    @property
    def kept_bytes(self) -> int:
        return len(self.body) + ENTRY_BYTES

    @classmethod
    def of(cls, body: bytes, record_id: str | None = None) -> Answer:
        return cls(body, f'"{sha256_of(body)}"', record_id)


class Memory:
    """Answers by their question, a small value, for as long as the registry is the same to a
    commit; the one that was asked for longest ago goes first. Without a version of the registry
    nothing is kept."""

    def __init__(self, registry: Registry, kept_bytes: int = KEPT_BYTES) -> None:
        self._registry, self._most_bytes = registry, kept_bytes
        self._lock = threading.Lock()
        self._version: Hashable = None
        self._answers: OrderedDict[Hashable, Answer] = OrderedDict()
        self._bytes = 0

    def answer(self, question: Hashable, make: Callable[[], Answer]) -> Answer:
        """The version is asked for before the answer is made: of a change in between the answer may
        know, and is forgotten all the same."""
        version = self._registry.version()
        known = self._known(version, question)
        if known is not None:
            return known
        answer = make()
        if version is not None:
            self._keep(version, question, answer)
        return answer

    def _known(self, version: Hashable, question: Hashable) -> Answer | None:
        with self._lock:
            if version is None or version != self._version:
                return None
            if (known := self._answers.get(question)) is not None:
                self._answers.move_to_end(question)
            return known

    def _keep(self, version: Hashable, question: Hashable, answer: Answer) -> None:
        with self._lock:
            if version != self._version:
                self._answers.clear()
                self._version, self._bytes = version, 0
            before = self._answers.pop(question, None)
            self._answers[question] = answer
            self._bytes += answer.kept_bytes - (0 if before is None else before.kept_bytes)
            while self._bytes > self._most_bytes:
                _, gone = self._answers.popitem(last=False)
                self._bytes -= gone.kept_bytes


class Fetches:
    """Counts what is given out, and writes it down now and then: each write would make the registry
    another one, and take longer than the answer."""

    def __init__(
        self,
        registry: Registry,
        *,
        every_s: float = COUNT_EVERY_S,
        monotonic_s: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._registry, self._every_s = registry, every_s
        self._monotonic_s, self._now = monotonic_s, now
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._written_at_s = monotonic_s()

    def note(self, record_id: str) -> None:
        with self._lock:
            if record_id in self._counts or len(self._counts) < MOST_COUNTED:
                self._counts[record_id] += 1
            is_due = self._monotonic_s() - self._written_at_s >= self._every_s
        if is_due:
            self.write()

    def write(self) -> None:
        """What was counted since; best effort."""
        with self._lock:
            counts, self._counts = self._counts, Counter()
            self._written_at_s = self._monotonic_s()
        if counts:
            self._registry.note_fetches(counts, self._now())
