"""How long a prompt is made. A pipeline pads to a default of its own, also where its tokenizer says
that the model takes less: there the plan pads to what the tokenizer says (`text_tokens`), so that
what is measured, an app's plain call and an exported script are of one length."""

from __future__ import annotations

import inspect
from typing import Any

PARAMETER = "max_sequence_length"
TOKENIZERS = ("tokenizer_3", "tokenizer_2", "tokenizer")
"""The last of a pipeline is the one whose length can be chosen."""


def plain_text_tokens(pipe: Any) -> int | None:
    """Tokens of a call that names no length, None for a pipeline whose calls name none."""
    found = inspect.signature(type(pipe).__call__).parameters.get(PARAMETER)
    return None if found is None else int(found.default)


def longest_text_tokens(pipe: Any) -> int | None:
    """The longest that pipeline and tokenizer both take; None as above."""
    plain = plain_text_tokens(pipe)
    found = (getattr(pipe, name, None) for name in TOKENIZERS)
    last = next((item for item in found if item is not None), None)
    return None if plain is None else min(plain, int(getattr(last, "model_max_length", plain)))


def padded_text_tokens(pipe: Any) -> int | None:
    """What a plan must pad to; None where the pipeline's own length is the tokenizer's too."""
    longest = longest_text_tokens(pipe)
    return None if longest == plain_text_tokens(pipe) else longest
