"""The page's configuration is the one in force."""

from __future__ import annotations

import re
from pathlib import Path

from tuner.daemon.config import Config, load_config

PAGE = Path(__file__).parents[3] / "docs" / "daemon.md"


def test_the_defaults_on_the_page_are_the_defaults(tmp_path: Path) -> None:
    (block,) = re.findall(r"```toml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    path = tmp_path / "config.toml"
    path.write_text(block)
    assert load_config(path) == Config()
    keys = set(re.findall(r"^(?:# )?(\w+) = ", block, re.MULTILINE))
    config = Config()
    for section in (config.daemon, config.daemon.idle, config.retention):
        assert set(type(section).model_fields) - {"idle"} <= keys
