"""One event, one line, for people and for programs."""

from __future__ import annotations

import json
import logging

import pytest

from tuner.daemon.logs import FACTS, JsonLines, TextLines

WHY = 'a "word"\nand a line'


@pytest.fixture
def record() -> logging.LogRecord:
    made = logging.LogRecord("tuner.daemon", logging.INFO, "", 0, "job ended", None, None)
    setattr(made, FACTS, {"job": 3, "why": WHY, "status": "done", "device": "a\nb"})
    return made


def test_facts_break_no_line_for_people(record: logging.LogRecord) -> None:
    line = TextLines().format(record)
    assert "\n" not in line
    facts = r'job=3 why="a \"word\"\nand a line" status=done device="a\nb"'
    assert line.endswith(f"INFO job ended {facts}")


def test_programs_get_an_object_a_line(record: logging.LogRecord) -> None:
    line = JsonLines().format(record)
    assert "\n" not in line
    said = json.loads(line)
    assert (said["event"], said["level"], said["why"]) == ("job ended", "info", WHY)
