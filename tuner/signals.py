"""Polite requests to stop: as an exception that unwinds like Ctrl-C does, or as calls."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType

from registry.errors import Interrupted


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """SIGTERM raises Interrupted in the main thread, so that `finally` blocks run.

    Does nothing in another thread, or where the application has a handler of its own.
    """
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def handling(actions: Mapping[signal.Signals, Callable[[], None]]) -> Iterator[None]:
    """Each signal calls its action, in the main thread; the handlers before come back at the end.
    An action must be safe at any point of a program."""

    def act(number: int, _frame: FrameType | None) -> None:
        actions[signal.Signals(number)]()

    before = {number: signal.signal(number, act) for number in actions}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise Interrupted("stopped by SIGTERM", hint="The run continues where it was when repeated.")
