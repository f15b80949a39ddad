"""`tuner tokens`: who may use the registry that `tuner serve` serves."""

from __future__ import annotations

from registry.server.commands import tokens_group
from registry.server.tokens import Tokens
from tuner.cli.opening import settings_for

command = tokens_group(lambda: Tokens(settings_for(None).config_dir))
