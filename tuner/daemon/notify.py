"""What a service tells systemd: ready, alive, stopping (sd_notify). Nothing where none asked."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from contextlib import suppress

SOCKET_VARIABLE = "NOTIFY_SOCKET"


class Notifier:
    """`environ` is the service's environment. Messages are datagrams: none is waited for, and one
    that systemd does not take is lost without harm."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._address = environ.get(SOCKET_VARIABLE) or None

    def ready(self, status: str) -> None:
        self._send(f"READY=1\nSTATUS={status}")

    def alive(self) -> None:
        """The loop goes round: without it for `WatchdogSec` systemd starts the service anew."""
        self._send("WATCHDOG=1")

    def reloading(self, monotonic_us: int) -> None:
        self._send(f"RELOADING=1\nMONOTONIC_USEC={monotonic_us}")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def _send(self, message: str) -> None:
        if self._address is None:
            return
        # An abstract address begins with a zero byte, which the variable writes as @.
        address = self._address.replace("@", "\0", 1) if self._address[0] == "@" else self._address
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.setblocking(False)
            channel.sendto(message.encode(), address)
