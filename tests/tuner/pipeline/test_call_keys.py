"""What torch is set to is part of a call's key."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from torch._inductor import config
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_flatten

from tuner.pipeline.call_keys import CallKey, attention_code, call_key
from tuner.pipeline.descriptions import Undescribable
from tuner.pipeline.replaced import CodeSeen

KERNELS = [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION]
DEFAULTS = """
from tuner.pipeline.call_keys import _inductor
print(_inductor())
"""


def key() -> CallKey:
    leaves, structure = tree_flatten(((torch.ones(2),), {}))
    with torch.no_grad():
        return call_key(structure, leaves)


def ordered(kernels: list[SDPBackend]) -> AbstractContextManager[Any]:
    return sdpa_kernel(kernels, set_priority=True)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda: ordered(KERNELS), lambda: ordered(KERNELS[::-1])),
        (lambda: config.patch(fallback_random=False), lambda: config.patch(fallback_random=True)),
    ],
)
def test_other_settings_are_other_keys(
    one: Callable[[], AbstractContextManager[Any]], other: Callable[[], AbstractContextManager[Any]]
) -> None:
    before = key()
    with one():
        first, again = key(), key()
    with other():
        second = key()
    assert first == again
    assert first.described != second.described
    assert key().described == before.described


def test_a_stance_of_the_app_has_no_key() -> None:
    with torch.compiler.set_stance("force_eager"), pytest.raises(Undescribable, match="stance"):
        key()


def test_inductor_as_it_comes_is_the_same_in_another_folder(tmp_path: Path) -> None:
    """Where its own hash is not."""
    told = [
        subprocess.run(
            [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path}\n{DEFAULTS}"],
            cwd=folder,
            check=True,
            stdout=subprocess.PIPE,
            timeout=120,
        ).stdout
        for folder in (Path.cwd(), tmp_path)
    ]
    assert told[0] == told[1] != b""


def attention(query: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return query


@pytest.mark.parametrize("name", [AttentionBackendName.NATIVE, "a_new_one"])
def test_an_attention_backend_registered_anew_is_seen(
    name: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = CodeSeen()
    before = attention_code(seen)
    assert seen.replaced() is None
    monkeypatch.setitem(_AttentionBackendRegistry._backends, name, attention)
    assert seen.replaced() is not None
    assert attention_code(CodeSeen()) != before
