"""The systemd unit of a daemon, for this user's own service manager or for the whole machine."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from registry.errors import InvalidInput
from registry.location import locate

WATCHDOG_S = 120
"""Far longer than one round of the loop, a busy registry included."""
STOP_S = 20
FOLDER_VARIABLES = ("TUNER_HOME", "HF_HOME", "HF_HUB_CACHE")
KEPT_VARIABLES = (*FOLDER_VARIABLES, "TUNER_REGISTRY", "CUDA_VISIBLE_DEVICES")
"""What decides where things lie, taken over from who installs. No token is ever written down."""


@dataclass(frozen=True)
class Unit:
    """`arguments` follow `python -m tuner daemon`; `writable` are folders it keeps things in."""

    python: str
    arguments: Sequence[str]
    environ: Mapping[str, str]
    writable: Sequence[Path]
    is_system: bool = False

    def text(self) -> str:
        command = [self.python, "-m", "tuner", "daemon", *self.arguments]
        lines = [
            "[Unit]",
            "Description=diffusion-tuner: tunes diffusion models while the GPU is idle",
            "After=network.target",
            "StartLimitIntervalSec=300",
            "StartLimitBurst=10",
            "",
            "[Service]",
            "Type=notify",
            f"ExecStart={' '.join(_quoted(word).replace('$', '$$') for word in command)}",
            "ExecReload=/bin/kill -HUP $MAINPID",
            *self._environment(),
            "Restart=on-failure",
            "RestartSec=10",
            "KillMode=mixed",
            f"TimeoutStopSec={STOP_S}",
            f"WatchdogSec={WATCHDOG_S}",
            "Nice=5",
            "OOMScoreAdjust=500",
            *self._hardening(),
            "",
            "[Install]",
            f"WantedBy={'multi-user' if self.is_system else 'default'}.target",
        ]
        return "\n".join(lines) + "\n"

    def _environment(self) -> list[str]:
        given = {name: self.environ[name] for name in KEPT_VARIABLES if self.environ.get(name)}
        kept = {name: _wherever(name, value) for name, value in given.items()}
        return [f"Environment={_quoted(f'{name}={value}')}" for name, value in kept.items()]

    def _hardening(self) -> list[str]:
        """What torch.compile and CUDA leave possible: generated code is executed, so memory may be
        written and then run, and devices stay open."""
        folders = " ".join(_quoted(str(folder)) for folder in self.writable)
        return [
            "NoNewPrivileges=yes",
            "PrivateTmp=yes",
            "ProtectSystem=strict",
            "ProtectHome=read-only",
            f"ReadWritePaths={folders}",
            "ProtectKernelModules=yes",
            "ProtectKernelTunables=yes",
            "ProtectControlGroups=yes",
            "RestrictSUIDSGID=yes",
            "LockPersonality=yes",
            "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK",
        ]


def _wherever(name: str, value: str) -> str:
    """The same place from any folder: a service is started in another one."""
    if name == "TUNER_REGISTRY":
        return locate(value).address
    return str(Path(value).expanduser().absolute()) if name in FOLDER_VARIABLES else value


def _quoted(word: str) -> str:
    """As systemd reads it: % begins a specifier. ($ begins a variable in ExecStart alone.)"""
    if "\n" in word:
        raise InvalidInput(f"{word!r} cannot stand in a systemd unit: it has a line break")
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return escaped if shlex.quote(word) == word else f'"{escaped}"'
