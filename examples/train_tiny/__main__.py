"""Trains a little FLUX pipeline that draws shapes from captions, within a time limit.

python -m examples.train_tiny --out DIR [--minutes 8.5] [--size full] [--device auto]
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str]) -> int:
    """0 once everything is saved."""
    start_s = time.monotonic()
    asked = _parser().parse_args(arguments)
    # Here, because each worker process imports this module and needs no torch.
    from examples.train_tiny.training import Request, train

    train(
        Request(
            out=asked.out,
            start_s=start_s,
            length_s=60 * asked.minutes,
            size=asked.size,
            domain=asked.domain,
            device=asked.device,
            seed=asked.seed,
            workers=asked.workers,
        )
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m examples.train_tiny", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for everything written")
    parser.add_argument("--minutes", type=float, default=8.5, help="for all of it, saving included")
    parser.add_argument("--size", choices=("full", "tiny"), default="full")
    parser.add_argument(
        "--domain", choices=("full", "narrow"), default="full", help="what is drawn"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--seed", type=int, default=0)
    workers = max(0, min(8, (os.cpu_count() or 1) - 2))
    parser.add_argument("--workers", type=int, default=workers, help="processes that make scenes")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
