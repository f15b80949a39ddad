"""The tokenizer knows every word of every caption, and training sees what the pipeline will see."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import torch
from diffusers import FluxPipeline
from transformers import AutoTokenizer

from examples.train_tiny.denoiser import clip_ids, image_ids
from examples.train_tiny.pictures import PROMPTS
from examples.train_tiny.scenes import DOMAINS, scenes
from examples.train_tiny.words import (
    EOS,
    PAD,
    TEXT_TOKENS,
    UNKNOWN,
    clip_tokenizer,
    t5_tokenizer,
    vocabulary,
)


def captions(count: int) -> list[str]:
    return [scene.caption() for scene in islice(scenes(DOMAINS["full"], "words"), count)]


def test_every_word_of_every_caption_is_known() -> None:
    tokenizer = t5_tokenizer()
    for ids in tokenizer([*captions(5000), *PROMPTS]).input_ids:
        assert UNKNOWN not in ids
        assert ids[-1] == EOS
        assert len(ids) < TEXT_TOKENS


def test_each_word_is_one_token_of_its_own() -> None:
    tokenizer = t5_tokenizer()
    words = [
        "a",
        "small",
        "red",
        "circle",
        "on",
        "the",
        "left",
        ",",
        "on",
        "a",
        "cyan",
        "background",
    ]
    ids = tokenizer("A small red circle on the left, on a cyan background").input_ids
    assert tokenizer.convert_ids_to_tokens(ids[:-1]) == words
    assert len(set(vocabulary().values())) == len(vocabulary())


def test_other_words_are_unknown() -> None:
    assert t5_tokenizer()("a lighthouse").input_ids == [vocabulary()["a"], UNKNOWN, EOS]


def test_both_tokenizers_survive_being_saved(tmp_path: Path) -> None:
    for make in (clip_tokenizer, t5_tokenizer):
        make().save_pretrained(tmp_path / make.__name__)
        loaded = AutoTokenizer.from_pretrained(tmp_path / make.__name__)
        padded = {"padding": "max_length", "max_length": TEXT_TOKENS, "truncation": True}
        assert loaded(captions(20), **padded).input_ids == make()(captions(20), **padded).input_ids


def test_training_gives_clip_what_its_tokenizer_gives() -> None:
    padded = {"padding": "max_length", "max_length": TEXT_TOKENS, "return_tensors": "pt"}
    some = ["", *captions(50)]
    t5 = t5_tokenizer()(some, **padded).input_ids
    assert t5[0].tolist() == [EOS] + [PAD] * (TEXT_TOKENS - 1)
    assert torch.equal(clip_ids(t5), clip_tokenizer()(some, **padded).input_ids)


def test_image_ids_are_the_pipelines() -> None:
    cpu = torch.device("cpu")
    theirs = FluxPipeline._prepare_latent_image_ids(1, 8, 8, cpu, torch.float32)
    assert torch.equal(image_ids(8, cpu), theirs)
