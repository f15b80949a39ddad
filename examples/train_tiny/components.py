"""The parts of the pipeline, untrained, and the pipeline that they make when trained."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
)
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from examples.train_tiny.sizes import Size
from examples.train_tiny.words import (
    BOS,
    EOS,
    PAD,
    TEXT_TOKENS,
    clip_tokenizer,
    t5_tokenizer,
    vocabulary,
)

SHIFT = 2.0
"""Of the noise schedule. A few flat areas make a picture: it shows through much noise."""
VOCABULARY_MULTIPLE = 16


class Denoiser(nn.Module):
    """The transformer and the text encoders that are trained with it, from scratch."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.transformer: Any = transformer(size)
        self.clip: Any = clip_encoder(size)
        self.t5: Any = t5_encoder(size)


def autoencoder(size: Size) -> Any:
    """An AutoencoderKL whose every level halves the picture but the last."""
    levels = len(size.vae_channels)
    return AutoencoderKL(
        block_out_channels=size.vae_channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=1,
        latent_channels=size.latent_channels,
        norm_num_groups=8,
        sample_size=size.pixels,
        use_quant_conv=False,
        use_post_quant_conv=False,
        force_upcast=False,
    )


def transformer(size: Size) -> Any:
    """A FluxTransformer2DModel that starts as the identity: all its gates are zero."""
    model: Any = FluxTransformer2DModel(
        in_channels=4 * size.latent_channels,
        num_layers=size.double_blocks,
        num_single_layers=size.single_blocks,
        attention_head_dim=size.head_width,
        num_attention_heads=size.heads,
        joint_attention_dim=size.text_width,
        pooled_projection_dim=size.text_width,
        guidance_embeds=False,
        axes_dims_rope=size.rope,
    )
    for name, layer in model.named_modules():
        modulates = name.endswith(".linear") and "norm" in name
        if isinstance(layer, nn.Linear) and (modulates or name == "proj_out"):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
    return model


def clip_encoder(size: Size) -> Any:
    """One layer: its pooled output joins the timestep."""
    config = CLIPTextConfig(
        vocab_size=vocabulary_size(),
        hidden_size=size.text_width,
        intermediate_size=2 * size.text_width,
        projection_dim=size.text_width,
        num_hidden_layers=1,
        num_attention_heads=size.text_width // 32,
        max_position_embeddings=TEXT_TOKENS,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    return CLIPTextModel(config)


def t5_encoder(size: Size) -> Any:
    """Its output is what the transformer attends to, token by token."""
    config = T5Config(
        vocab_size=vocabulary_size(),
        d_model=size.text_width,
        d_ff=2 * size.text_width,
        d_kv=32,
        num_heads=size.text_width // 32,
        num_layers=size.text_layers,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
        use_cache=False,
        pad_token_id=PAD,
        eos_token_id=EOS,
    )
    return T5EncoderModel(config)


def vocabulary_size() -> int:
    """Rows of the embeddings: the vocabulary, rounded up."""
    return -(-len(vocabulary()) // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


def pipeline(denoiser: Denoiser, vae: Any, dtype: torch.dtype) -> Any:
    """A FluxPipeline of copies of the components in `dtype`, on the device where they are."""
    transformer, clip, t5, decoder = (
        deepcopy(part).to(dtype).eval().requires_grad_(False)
        for part in (denoiser.transformer, denoiser.clip, denoiser.t5, vae)
    )
    made: Any = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        vae=decoder,
        text_encoder=clip,
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5,
        tokenizer_2=t5_tokenizer(),
        transformer=transformer,
    )
    made.set_progress_bar_config(disable=True)
    return made
