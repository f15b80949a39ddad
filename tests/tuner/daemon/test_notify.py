"""What systemd hears."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tuner.daemon.notify import Notifier


@pytest.mark.parametrize("abstract", [False, True])
def test_a_service_says_how_it_is(tmp_path: Path, abstract: bool) -> None:
    name = f"@{tmp_path}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(name.replace("@", "\0", 1) if abstract else name)
        systemd.settimeout(5)
        notifier = Notifier({"NOTIFY_SOCKET": name})
        notifier.ready("serves cpu")
        notifier.alive()
        notifier.reloading(12)
        notifier.stopping()
        heard = [systemd.recv(1000).decode() for _ in range(4)]
    assert heard == [
        "READY=1\nSTATUS=serves cpu",
        "WATCHDOG=1",
        "RELOADING=1\nMONOTONIC_USEC=12",
        "STOPPING=1",
    ]


def test_without_systemd_nothing_is_said(tmp_path: Path) -> None:
    Notifier({}).ready("serves cpu")
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "nobody")}).alive()
