"""`tuner keys`: whose compiled code is run here."""

from __future__ import annotations

import json

import pytest

from registry.signing import SigningKeys
from tuner.cli.main import run
from tuner.config import load_settings

Captured = pytest.CaptureFixture[str]


def test_whose_artifacts_are_trusted(home: object, capsys: Captured) -> None:
    assert run(["keys", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    stranger = SigningKeys(load_settings().data_dir / "stranger").public_key
    assert run(["keys", "trust", "a colleague", stranger.public_key]) == 0
    assert capsys.readouterr().out == f"trusted: a colleague ({stranger.key_id})\n"
    assert run(["keys", "list"]) == 0
    assert "a colleague" in capsys.readouterr().out
    assert run(["keys", "show", "a colleague"]) == 0
    assert capsys.readouterr().out.splitlines()[1] == stranger.public_key
    assert run(["keys", "revoke", "a colleague"]) == 0
    assert capsys.readouterr().out == f"no longer trusted: a colleague ({stranger.key_id})\n"
    assert run(["keys", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_ones_own_key_is_made_to_be_shown(home: object, capsys: Captured) -> None:
    assert run(["keys", "show", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    own = SigningKeys(load_settings().config_dir).public_key
    assert shown == {"name": "own", "public_key": own.public_key, "key_id": own.key_id}
    assert run(["keys", "revoke", own.key_id]) == 2
    assert own.key_id in capsys.readouterr().err


def test_a_key_that_is_none(home: object, capsys: Captured) -> None:
    assert run(["keys", "trust", "someone", "not a key"]) == 2
    assert "'not a key'" in capsys.readouterr().err
    for command in ("revoke", "show"):
        assert run(["keys", command, "nobody"]) == 2
        assert "nobody" in capsys.readouterr().err


def test_a_name_that_two_keys_have_means_neither(home: object, capsys: Captured) -> None:
    for folder in ("one", "two"):
        other = SigningKeys(load_settings().data_dir / folder).public_key
        assert run(["keys", "trust", "team", other.public_key]) == 0
    assert run(["keys", "revoke", "team"]) == 2
    assert "several keys are called 'team'" in capsys.readouterr().err
    assert len(SigningKeys(load_settings().config_dir).trusted()) == 2
