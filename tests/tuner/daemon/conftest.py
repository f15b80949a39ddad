from __future__ import annotations

from pathlib import Path

import pytest

from tests.tuner.daemon.machine import DaemonMachine


@pytest.fixture
def machine(tmp_path: Path) -> DaemonMachine:
    return DaemonMachine(tmp_path)
