"""Bytes from a worker's event descriptor, turned into checked events."""

from __future__ import annotations

import json

from pydantic import ValidationError

from tuner.protocol import EVENT, PROTOCOL, Event, Hello, WorkerFailure

MAX_EVENT_BYTES = 64 * 2**20
SHOWN_CHARACTERS = 120


class BadEvent(Exception):
    """The worker broke the protocol."""


class OtherProtocol(Exception):
    """The worker speaks another protocol number: it is of another release."""

    def __init__(self, protocol: object, tuner_version: object) -> None:
        super().__init__(f"protocol {protocol}, tuner {tuner_version}")
        self.protocol = protocol
        self.tuner_version = tuner_version


class EventStream:
    """Splits lines and parses each; the first event must be a hello or a failure."""

    def __init__(self) -> None:
        self._rest = b""
        self._greeted = False

    def feed(self, data: bytes) -> list[Event]:
        """Events completed by `data`. Raises BadEvent, OtherProtocol."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_EVENT_BYTES:
            raise BadEvent(f"an event of more than {MAX_EVENT_BYTES} bytes")
        return [self._parse(line) for line in lines if line.strip()]

    def _parse(self, line: bytes) -> Event:
        if not self._greeted:
            _check_protocol(line)
        try:
            event = EVENT.validate_json(line)
        except ValidationError as error:
            problem = error.errors()[0]
            place = ".".join(str(part) for part in problem["loc"])
            raise BadEvent(f"{problem['msg']} at {place or 'the top'}: {_shown(line)}") from None
        if not self._greeted and not isinstance(event, Hello | WorkerFailure):
            raise BadEvent(f"the first event is no hello: {_shown(line)}")
        self._greeted = True
        return event


def _check_protocol(line: bytes) -> None:
    """Before anything else: a hello of another protocol may have other fields."""
    try:
        hello = json.loads(line)
    except ValueError:
        return
    if isinstance(hello, dict) and hello.get("event") == "hello":
        if hello.get("protocol") != PROTOCOL:
            raise OtherProtocol(hello.get("protocol"), hello.get("tuner_version"))


def _shown(line: bytes) -> str:
    text = line.decode(errors="replace")
    return repr(text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "…")
