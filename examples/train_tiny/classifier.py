"""Reads a picture back: what is at each place, and before which background."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from examples.train_tiny.feed import Feed
from examples.train_tiny.hardware import Hardware
from examples.train_tiny.layout import ATTRIBUTES, SceneBatch
from examples.train_tiny.scenes import BACKGROUNDS, COLOURS, COUNTS, PLACES, SHAPES, SIZES, TEXTURES
from examples.train_tiny.shapes import draw, on_device
from examples.train_tiny.sizes import Size
from examples.train_tiny.timebox import Journal, Stage, learning_rate

CHOICES = (len(COUNTS) + 1, len(SIZES), len(TEXTURES), len(COLOURS), len(SHAPES))
"""How many answers there are to each of ATTRIBUTES; a count of 0 is one."""
READ_PIXELS = 128
RATE = 2e-3
NOISE = 0.1
NOTED_EVERY = 50


@dataclass(frozen=True)
class Reading:
    """Logits: `groups` one tensor [N, 9, choices] for each of ATTRIBUTES, `behind` [N, 11]."""

    groups: tuple[Tensor, ...]
    behind: Tensor


class Classifier(nn.Module):
    """About 300,000 parameters. Pictures [N, 3, height, width] in -1..1, read at 128x128."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 24, 32, 48, 64, 64)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after)]
            layers += [nn.SiLU()]
        layers += [nn.Flatten(), nn.Linear(64 * (READ_PIXELS // 32) ** 2, 160), nn.SiLU()]
        self.body = nn.Sequential(*layers)
        self.places = nn.Linear(160, len(PLACES) * sum(CHOICES))
        self.behind = nn.Linear(160, len(BACKGROUNDS))

    def forward(self, pictures: Tensor) -> Reading:
        if pictures.shape[-1] != READ_PIXELS:
            pictures = functional.interpolate(pictures, READ_PIXELS, mode="bilinear")
        seen = self.body(pictures)
        by_place = self.places(seen).unflatten(1, (len(PLACES), sum(CHOICES)))
        return Reading(by_place.split(CHOICES, dim=2), self.behind(seen))


def save_classifier(model: Classifier, path: Path) -> None:
    """As safetensors in fp16: under 1 MB."""
    save_file({name: part.half().contiguous() for name, part in model.state_dict().items()}, path)


def load_classifier(path: Path) -> Classifier:
    """What `save_classifier` wrote, in float32 on the CPU."""
    model = Classifier()
    model.load_state_dict(load_file(path))
    return model.eval().requires_grad_(False)


def train_classifier(
    size: Size, feed: Feed, hardware: Hardware, stage: Stage, journal: Journal
) -> Classifier:
    """Trained until `stage` is over, on noisy pictures so that it does not rely on fine detail.

    It sees the held-out combinations too: a judge must know what the judged must not.
    """
    model = Classifier().to(hardware.device)
    optimizer = hardware.adam(model.parameters(), RATE)
    batches = feed.batches(0, size.classifier_batch, with_held_out=True)
    for step, share in stage.steps():
        hardware.set_rate(optimizer, learning_rate(RATE, step, share))
        batch = next(batches)
        pictures = draw(batch, size.pixels, hardware.device)
        with hardware.autocast():
            loss = reading_loss(model(pictures + NOISE * torch.randn_like(pictures)), batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if step % NOTED_EVERY == 0:
            journal.note("classifier", step, loss=loss.item())
    return model.eval().requires_grad_(False)


def reading_loss(reading: Reading, batch: SceneBatch) -> Tensor:
    """The sum of the cross entropies of all answers."""
    device = reading.behind.device
    groups, behind = (on_device(part, device) for part in (batch.groups, batch.behind))
    loss = functional.cross_entropy(reading.behind.float(), behind)
    for index, logits in enumerate(reading.groups):
        loss = loss + functional.cross_entropy(
            logits.float().flatten(0, 1), groups[:, :, index].flatten(), ignore_index=-1
        )
    return loss


def right_answers(reading: Reading, batch: SceneBatch) -> dict[str, float]:
    """The share of right answers by attribute, and their mean as `all`.

    `position`: exactly the places that should hold a group do. The others are judged at the
    places that should hold one.
    """
    groups, behind = torch.from_numpy(batch.groups), torch.from_numpy(batch.behind)
    read = torch.stack([logits.argmax(2).cpu() for logits in reading.groups], dim=2)
    there = groups[:, :, 0] > 0
    right: dict[str, Any] = {"position": (read[:, :, 0].gt(0) == there).all(1)}
    for index, name in enumerate(ATTRIBUTES):
        right[name] = (read == groups)[:, :, index][there]
    right["background"] = reading.behind.argmax(1).cpu() == behind
    shares = {name: answers.float().mean().item() for name, answers in right.items()}
    return shares | {"all": sum(shares.values()) / len(shares)}
