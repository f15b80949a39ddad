"""The whole of it, by the clock: classifier, VAE, denoiser, and what is written at the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from examples.train_tiny.autoencoder import train_autoencoder
from examples.train_tiny.classifier import Classifier, save_classifier, train_classifier
from examples.train_tiny.components import Denoiser, autoencoder, pipeline
from examples.train_tiny.denoiser import Training
from examples.train_tiny.feed import Feed
from examples.train_tiny.hardware import Hardware, hardware
from examples.train_tiny.latents import Pool
from examples.train_tiny.layout import judged_batch
from examples.train_tiny.pictures import PROMPTS, fidelity, generate, save_grid
from examples.train_tiny.results import (
    Origin,
    bytes_of_weights,
    save_figures,
    save_pipeline,
    write_card,
)
from examples.train_tiny.scenes import DOMAINS
from examples.train_tiny.shapes import draw
from examples.train_tiny.sizes import SIZES, Size
from examples.train_tiny.timebox import Journal, Stage, TimeBox

CLASSIFIER_UNTIL = 0.09
VAE_UNTIL = 0.37
DENOISER_UNTIL = 0.93
PREVIEWS = 4


@dataclass(frozen=True)
class Request:
    """What was asked for; `start_s` is of time.monotonic()."""

    out: Path
    start_s: float
    length_s: float
    size: str
    domain: str
    device: str
    seed: int
    workers: int


@dataclass(frozen=True)
class Session:
    """What every stage works with."""

    request: Request
    size: Size
    hardware: Hardware
    box: TimeBox
    journal: Journal

    @property
    def judged(self) -> int:
        """Pictures that a fidelity is measured on."""
        return 512 if self.hardware.on_gpu else 32


def train(request: Request) -> None:
    """Trains and writes everything under `request.out` before its time is over.

    `pipeline/` is a diffusers folder; `classifier.safetensors`, `curve.json`, `fidelity.json` and
    grids as PNG lie beside it.
    """
    request.out.mkdir(parents=True, exist_ok=True)
    _quieten()
    torch.manual_seed(request.seed)
    box = TimeBox(request.start_s, request.length_s)
    session = Session(
        request, SIZES[request.size], hardware(request.device), box, Journal(request.out, box)
    )
    session.journal.say(f"{session.hardware.name}, torch {torch.__version__}")
    with Feed(DOMAINS[request.domain], request.seed, request.workers) as feed:
        _train(session, feed)


def _quieten() -> None:
    """Neither a bar for each file written nor a warning for each copy in bf16."""
    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def _train(session: Session, feed: Feed) -> None:
    size, gpu, box, journal = session.size, session.hardware, session.box, session.journal
    classifier = train_classifier(size, feed, gpu, box.until(CLASSIFIER_UNTIL), journal)
    save_classifier(classifier, session.request.out / "classifier.safetensors")
    vae = autoencoder(size)
    train_autoencoder(vae, size, feed, gpu, box.until(VAE_UNTIL), journal)
    _save_reconstructions(session, vae)
    training = Training(Denoiser(size), size, gpu)
    pool = Pool(vae, size, feed, gpu)
    journal.say(f"{size.pool} pictures encoded")

    def averaged_pipeline() -> Any:
        return training.averaged(lambda denoiser: pipeline(denoiser, vae, torch.bfloat16))

    stage = box.until(DENOISER_UNTIL)
    previews = _previews(session, stage, averaged_pipeline, classifier)
    training.run(pool, stage, journal, previews)
    _finish(session, averaged_pipeline(), classifier)


def _previews(
    session: Session, stage: Stage, averaged_pipeline: Callable[[], Any], classifier: Classifier
) -> Callable[[int], None]:
    """A check that saves the pipeline, a grid and figures of it, PREVIEWS times in `stage`."""
    request, out, done = session.request, session.request.out, 0
    length_s = stage.end_s - stage.start_s
    batch = judged_batch(DOMAINS[request.domain], request.seed, session.judged // 4)

    def check(step: int) -> None:
        nonlocal done
        share = (stage.clock() - stage.start_s) / length_s
        if share < (done + 1) / (PREVIEWS + 1):
            return
        done += 1
        pipe = averaged_pipeline()
        save_pipeline(pipe, out)
        save_grid(_drawn(session, pipe), out / f"grid-{done}.png")
        shares = fidelity(pipe, classifier, batch, pixels=session.size.pixels, seed=request.seed)
        session.journal.note("fidelity", step, **shares["generated"])
        session.journal.save()

    return check


def _drawn(session: Session, pipe: Any) -> torch.Tensor:
    return generate(pipe, PROMPTS, pixels=session.size.pixels, seed=session.request.seed)


def _save_reconstructions(session: Session, vae: Any) -> None:
    """Held-out pictures and, below each row, what the VAE makes of them."""
    batch = judged_batch(DOMAINS[session.request.domain], session.request.seed, 16)
    pictures = draw(batch, session.size.pixels, session.hardware.device)
    with torch.no_grad(), session.hardware.autocast():
        latents = vae.encode(pictures).latent_dist.mode()
        again = vae.decode(latents).sample.float()
    session.journal.say(f"VAE: mean difference {(again - pictures).abs().mean().item() / 2:.4f}")
    rows = torch.stack([pictures.unflatten(0, (2, 8)), again.unflatten(0, (2, 8))], dim=1)
    save_grid(rows.flatten(0, 2), session.request.out / "vae.png", columns=8)


def _finish(session: Session, pipe: Any, classifier: Classifier) -> None:
    out, journal = session.request.out, session.journal
    save_pipeline(pipe, out)
    journal.save()
    journal.say(f"pipeline saved: {bytes_of_weights(out) / 1e6:.2f} MB of weights")
    save_grid(_drawn(session, pipe), out / "grid.png")
    figures = _judge(session, pipe, classifier)
    save_figures(out / "fidelity.json", figures)
    for name, shares in figures.items():
        generated, real = shares["generated"]["all"], shares["real"]["all"]
        journal.say(f"fidelity, {name}: {generated:.3f} of answers right, {real:.3f} on real ones")
    write_card(out, _origin(session), figures)
    journal.say("done")


def _origin(session: Session) -> Origin:
    return Origin(
        seed=session.request.seed,
        size=session.request.size,
        domain=session.request.domain,
        device=session.hardware.name,
        minutes=session.request.length_s / 60,
        steps=int(session.journal.curves["denoiser"][-1]["step"]),
        pixels=session.size.pixels,
    )


def _judge(
    session: Session, pipe: Any, classifier: Classifier
) -> dict[str, dict[str, dict[str, float]]]:
    """By set of prompts. `seen`: combinations that training shows; `long_text`: padded to 512."""
    domain, seed = DOMAINS[session.request.domain], session.request.seed
    held_out = judged_batch(domain, seed, session.judged)
    seen = judged_batch(domain, seed, session.judged, held_out=False)
    few = judged_batch(domain, seed, session.judged // 4)
    pixels = session.size.pixels
    return {
        "held_out": fidelity(pipe, classifier, held_out, pixels=pixels, seed=seed),
        "seen": fidelity(pipe, classifier, seen, pixels=pixels, seed=seed),
        "long_text": fidelity(pipe, classifier, few, pixels=pixels, seed=seed, text_tokens=512),
    }
