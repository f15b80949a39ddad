"""How much `tuner get-plan` costs over importing the libraries it stands on.

Runs both commands in turn against a registry given by --registry (or TUNER_REGISTRY) and compares
medians. Exit code 1 above the limit. Arguments after `--` go to get-plan.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

IMPORTS = (
    "import sqlalchemy.orm, pydantic, click,"
    " cryptography.hazmat.primitives.asymmetric.ed25519, pynvml"
)
DEFAULT_ARGUMENTS = ["--model", "tiny-flux", "--vram", "2GB", "--resolution", "64x64"]


def wall_s(command: list[str]) -> float:
    """Wall time of one run. Raises CalledProcessError unless it exits with 0."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> int:
    options = arguments()
    tuner = str(Path(sys.executable).with_name("tuner"))
    commands = {
        "bare imports": [sys.executable, "-c", IMPORTS],
        "tuner get-plan": [tuner, "get-plan", *(options.rest or DEFAULT_ARGUMENTS)],
    }
    medians_s = compare(commands, options.rounds)
    ratio = medians_s["tuner get-plan"] / medians_s["bare imports"]
    for name, median_s in medians_s.items():
        print(f"{name}: {median_s * 1000:.0f} ms (median of {options.rounds})")
    print(f"ratio: {ratio:.2f} (limit {options.limit})")
    return int(ratio > options.limit)


def compare(commands: dict[str, list[str]], rounds: int) -> dict[str, float]:
    """Median wall time by name; the commands take turns, so that drift meets them alike."""
    for command in commands.values():
        wall_s(command)
    samples_s: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            samples_s[name].append(wall_s(command))
    return {name: statistics.median(values) for name, values in samples_s.items()}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--limit", type=float, default=1.3)
    parser.add_argument("rest", nargs="*", help="arguments of get-plan, after --")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
