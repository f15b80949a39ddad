"""A tokenizer for random weights: bytes as tokens, in a vocabulary of the real size.

Random weights give tokens no meaning; what counts is their number, their range and the padding.
"""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tuner.catalog import TokenizerSpec


def byte_tokenizer(spec: TokenizerSpec) -> Any:
    """A fast tokenizer with `spec`'s ids for bos, eos and pad, bytes on the ids between."""
    special = {
        index: f"<|{role}|>"
        for role, index in (
            ("pad", spec.pad_token_id),
            ("bos", spec.bos_token_id),
            ("eos", spec.eos_token_id),
        )
        if index is not None
    }
    tokenizer = Tokenizer(models.BPE(vocab=_vocabulary(spec, special), merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = _template(spec, special)
    names = {
        "pad_token": special[spec.pad_token_id],
        "eos_token": special[spec.eos_token_id],
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=spec.model_max_length, **names
    )


def _vocabulary(spec: TokenizerSpec, special: dict[int, str]) -> dict[str, int]:
    free = (index for index in range(spec.vocab_size) if index not in special)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = dict(zip(alphabet, free, strict=False))
    return vocabulary | {name: index for index, name in special.items()}


def _template(spec: TokenizerSpec, special: dict[int, str]) -> Any:
    ids = [index for index in (spec.bos_token_id, spec.eos_token_id) if index is not None]
    start = f"{special[spec.bos_token_id]} " if spec.bos_token_id is not None else ""
    return processors.TemplateProcessing(
        single=f"{start}$A {special[spec.eos_token_id]}",
        special_tokens=[(special[index], index) for index in ids],
    )
