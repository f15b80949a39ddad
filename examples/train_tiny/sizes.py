"""How large everything is, and how it is trained, for each `--size`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """`head_width` is that of the denoiser's attention, split by RoPE into (frame, row, column).

    `pool` latents are kept, and renewed `chunk` by `chunk`. `long_texts` are other lengths that a
    text is padded to, so that the pipeline can be called with its default length of 512.
    """

    pixels: int
    vae_channels: tuple[int, ...]
    latent_channels: int
    text_width: int
    text_layers: int
    heads: int
    head_width: int
    rope: tuple[int, int, int]
    double_blocks: int
    single_blocks: int
    vae_batch: int
    classifier_batch: int
    batch: int
    pool: int
    chunk: int
    denoiser_rate: float
    vae_rate: float = 7e-4
    long_texts: tuple[int, ...] = (64, 128, 256, 512)

    @property
    def image_tokens(self) -> int:
        """What a picture is to the denoiser: each VAE level but the last halves it, packing too."""
        side: int = self.pixels // 2 ** len(self.vae_channels)
        return side * side


SIZES = {
    "full": Size(
        pixels=128,
        vae_channels=(32, 48, 64, 80),
        latent_channels=16,
        text_width=128,
        text_layers=3,
        heads=6,
        head_width=32,
        rope=(8, 12, 12),
        double_blocks=2,
        single_blocks=5,
        vae_batch=128,
        classifier_batch=512,
        batch=512,
        pool=196_608,
        chunk=512,
        denoiser_rate=1e-3,
    ),
    "tiny": Size(
        pixels=32,
        vae_channels=(16, 32, 32),
        latent_channels=8,
        text_width=64,
        text_layers=1,
        heads=4,
        head_width=32,
        rope=(8, 12, 12),
        double_blocks=1,
        single_blocks=2,
        vae_batch=32,
        classifier_batch=16,
        batch=32,
        pool=4096,
        chunk=64,
        denoiser_rate=2e-3,
        vae_rate=2e-3,
        long_texts=(64, 128),
    ),
}
