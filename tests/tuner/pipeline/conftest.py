"""Warnings of the libraries themselves, which no code of ours can avoid."""

from __future__ import annotations

from pathlib import Path

import pytest

IGNORED = (
    # diffusers' schedulers hand tensors to numpy 2, whose protocol torch does not speak yet.
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning",
    # diffusers' own FLUX ControlNet imports what diffusers deprecates (0.42).
    "ignore:`FluxPosEmbed` is deprecated:FutureWarning",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            for line in IGNORED:
                item.add_marker(pytest.mark.filterwarnings(line))
