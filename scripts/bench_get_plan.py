"""How much `tuner get-plan` costs over importing the libraries it stands on.

Two answers are timed beside the bare imports, in turn: one from the registry of --registry (or
TUNER_REGISTRY, or the user's own), where it holds one; and an estimated one, from a registry that
holds nothing. Medians are compared; exit code 1 where one is over the limit. Arguments after `--`
go to get-plan.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from registry.client import open_registry

IMPORTS = (
    "import sqlalchemy.orm, pydantic, click,"
    " cryptography.hazmat.primitives.asymmetric.ed25519, pynvml"
)
BARE = "bare imports"
DEFAULT_ARGUMENTS = ["--model", "tiny-flux", "--vram", "2GB", "--resolution", "64x64"]


def main() -> int:
    options = arguments()
    with tempfile.TemporaryDirectory() as folder:
        empty = Path(folder) / "empty.sqlite3"
        open_registry(empty)
        commands = {BARE: [sys.executable, "-c", IMPORTS], **answers(options, str(empty))}
        medians_s = compare(commands, options.rounds)
    ratios = {name: value / medians_s[BARE] for name, value in medians_s.items()}
    for name, median_s in medians_s.items():
        ratio = "" if name == BARE else f", {ratios[name]:.2f} of the bare imports"
        print(f"{name}: {median_s * 1000:.0f} ms{ratio}")
    print(f"medians of {options.rounds}; limit {options.limit}")
    return int(max(ratios.values()) > options.limit)


def answers(options: argparse.Namespace, empty: str) -> dict[str, list[str]]:
    """The commands to time, each named by how its answer matches."""
    asked = [str(Path(sys.executable).with_name("tuner")), "get-plan"]
    asked += options.rest or DEFAULT_ARGUMENTS
    own = [*asked, *(["--registry", options.registry] if options.registry else [])]
    commands = [own, [*asked, "--registry", empty]]
    named = {f"get-plan, {match_of(command)}": command for command in commands}
    if len(named) == 1:
        print("the registry holds no answer: only an estimated one is timed")
    return named


def match_of(command: list[str]) -> str:
    """How the answer matches. Raises CalledProcessError unless the command exits with 0."""
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    return str(json.loads(printed)["match"])


def compare(commands: dict[str, list[str]], rounds: int) -> dict[str, float]:
    """Median wall time by name; the commands take turns, so that drift meets them alike."""
    for command in commands.values():
        wall_s(command)
    samples_s: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            samples_s[name].append(wall_s(command))
    return {name: statistics.median(values) for name, values in samples_s.items()}


def wall_s(command: list[str]) -> float:
    """Wall time of one run. Raises CalledProcessError unless it exits with 0."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--limit", type=float, default=1.3)
    parser.add_argument("--registry", help="where proved plans are")
    parser.add_argument("rest", nargs="*", help="arguments of get-plan, after --")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
