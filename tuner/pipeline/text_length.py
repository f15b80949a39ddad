"""How long a prompt is made: what is measured must be what an app's plain call does."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

PARAMETER = "max_sequence_length"
TOKENIZERS = ("tokenizer_3", "tokenizer_2", "tokenizer")
"""The last of a pipeline is the one whose length can be chosen."""


def default_text_tokens(pipe: Any) -> int | None:
    """Tokens of a call that names no length, None for a pipeline whose calls name none."""
    found = inspect.signature(type(pipe).__call__).parameters.get(PARAMETER)
    return None if found is None else int(found.default)


def longest_text_tokens(pipe: Any) -> int | None:
    """The longest that pipeline and tokenizer both take; None as above."""
    default = default_text_tokens(pipe)
    if default is None:
        return None
    found = (getattr(pipe, name, None) for name in TOKENIZERS)
    last = next((item for item in found if item is not None), None)
    return min(default, int(getattr(last, "model_max_length", default)))


def pad_text(pipe: Any, text_tokens: int) -> None:
    """Every prompt padded to one length, whatever the caller says: one shape, one graph."""
    _set_length(pipe, lambda _: text_tokens)


def limit_text(pipe: Any) -> None:
    """No prompt longer than its tokenizer takes, where the pipeline's default would be: so are
    requests measured."""
    default, longest = default_text_tokens(pipe), longest_text_tokens(pipe)
    if default is None or longest is None or not takes_text_length(pipe):
        return
    if longest < default:
        _set_length(pipe, lambda given: min(given, longest))


def takes_text_length(pipe: Any) -> bool:
    """Whether its prompts can be made of another length than its own."""
    encode = getattr(pipe, "encode_prompt", None)
    return encode is not None and PARAMETER in inspect.signature(encode).parameters


def _set_length(pipe: Any, length: Callable[[int], int]) -> None:
    encode = pipe.encode_prompt
    default = inspect.signature(encode).parameters[PARAMETER].default

    def with_length(*args: Any, **kwargs: Any) -> Any:
        given = kwargs.get(PARAMETER, default)
        return encode(*args, **{**kwargs, PARAMETER: length(given)})

    pipe.encode_prompt = with_length
