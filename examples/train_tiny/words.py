"""A word-level tokenizer for the captions, in the two forms that a FluxPipeline holds."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from examples.train_tiny.scenes import BACKGROUNDS, COUNTS, PLACES, PLURALS, SIZES, TEXTURES

PAD, EOS, BOS, UNKNOWN = range(4)
"""EOS is not 2: with that number transformers' CLIP looks for the highest id instead."""
SPECIAL = ("<pad>", "</s>", "<s>", "<unk>")
TEXT_TOKENS = 32
"""The longest caption has 24 words."""


def vocabulary() -> dict[str, int]:
    """Word to id; special tokens come first."""
    words = [word for phrase in PLACES for word in phrase.split()]
    words += [*BACKGROUNDS, *PLURALS, *PLURALS.values(), *SIZES, *TEXTURES, *COUNTS.values()]
    words += ["an", "one", "and", ",", "background"]
    return {word: index for index, word in enumerate(dict.fromkeys([*SPECIAL, *words]))}


def clip_tokenizer() -> Any:
    """`<s> words </s>`, padded by a pipeline to TEXT_TOKENS."""
    return _tokenizer("<s> $A </s>", {"bos_token": "<s>"})


def t5_tokenizer() -> Any:
    """`words </s>`, padded by a pipeline to its `max_sequence_length`."""
    return _tokenizer("$A </s>", {})


def _tokenizer(template: str, names: dict[str, str]) -> Any:
    tokenizer = Tokenizer(models.WordLevel(vocabulary(), unk_token="<unk>"))  # noqa: S106
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("<s>", BOS), ("</s>", EOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=TEXT_TOKENS,
        pad_token="<pad>",  # noqa: S106
        eos_token="</s>",  # noqa: S106
        unk_token="<unk>",  # noqa: S106
        **names,
    )
