"""`tuner serve` and `tuner tokens`, in a process of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from registry.server.tokens import Tokens
from tuner.cli.main import run
from tuner.config import load_settings

ROOT = Path(__file__).resolve().parents[3]


def test_serve_answers_until_it_is_told_to_stop(
    tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["tokens", "create", "alice"]) == 0
    secret = capsys.readouterr().out.strip()
    assert Tokens(load_settings().config_dir).bearer(secret) is not None
    where = ["--registry", str(tmp_path / "registry.sqlite3"), "--port", "0", "--require-token"]
    command = [sys.executable, "-m", "tuner", "serve", *where]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stdout is not None
        try:
            url = child.stdout.readline().rsplit(" ", 1)[-1].strip()
            question = f"{url}/v1/plan?model=tiny-flux&vram=2GB&resolution=64x64&gpu=cpu"
            asked = Request(question, headers={"Authorization": f"Bearer {secret}"})
            with urlopen(asked, timeout=30) as answer:
                assert json.load(answer)["match"] == "estimated"
            child.send_signal(signal.SIGTERM)
            assert child.wait(30) == 0
        finally:
            child.kill()


def test_serve_refuses_to_be_open_to_others(
    tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--registry", str(tmp_path / "registry.sqlite3"), "--port", "0"]
    assert run(["serve", *where, "--host", "0.0.0.0"]) == 2
    assert "no TLS" in capsys.readouterr().err
    assert run(["serve", *where, "--tls-key", __file__]) == 2
    assert "belong together" in capsys.readouterr().err
