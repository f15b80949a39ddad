"""How much `tuner get-plan` costs over importing the libraries it stands on.

Timed beside the bare imports, in turn: an answer from the registry of --registry (or
TUNER_REGISTRY, or the user's own), where it holds one; an estimated one for this machine; and
estimated ones for GPUs of several sizes that need not be here (`scripts/stand_in_gpu.py`), where
the whole answer is a search. Medians are compared; exit code 1 where one is over the limit.
Arguments after `--` go to this machine's own questions.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from registry.client import open_registry
from scripts.stand_in_gpu import H100, RTX_3060, RTX_4060, RTX_4090, make_stand_in

IMPORTS = (
    "import sqlalchemy.orm, pydantic, click,"
    " cryptography.hazmat.primitives.asymmetric.ed25519, pynvml"
)
BARE = "bare imports"
EMPTY = "empty.sqlite3"
NO_BYTECODE = {"PYTHONDONTWRITEBYTECODE"}
GET_PLAN = (str(Path(sys.executable).with_name("tuner")), "get-plan")
DEFAULT_ARGUMENTS = ("--model", "tiny-flux", "--vram", "2GB", "--resolution", "64x64")


QUESTIONS = (
    (RTX_4060, "8GB", "64GB"),
    (RTX_4060, "8GB", "24GB"),
    (RTX_3060, "12GB", "64GB"),
    (RTX_3060, "12GB", "24GB"),
    (RTX_4090, "24GB", "64GB"),
    (H100, "80GB", "64GB"),
)
"""A card, how much of it, and how much of the host's memory: with little of it hardly anything of
FLUX fits, and the whole space is searched."""
MODELS = ("flux-dev", "sdxl")


@dataclass(frozen=True)
class Command:
    """One program to time. `folders` come first on PYTHONPATH."""

    words: tuple[str, ...]
    folders: tuple[Path, ...] = ()

    def run(self) -> str:
        """What it prints. Raises CalledProcessError unless it exits with 0."""
        done = subprocess.run(
            self.words, check=True, stdout=subprocess.PIPE, env=self._environ(), text=True
        )
        return done.stdout

    def _environ(self) -> dict[str, str]:
        """Compiled modules are kept, as in any installation: compiling is not what is timed."""
        given = {key: value for key, value in os.environ.items() if key not in NO_BYTECODE}
        paths = [*map(str, self.folders), *filter(None, [given.get("PYTHONPATH")])]
        return given | ({"PYTHONPATH": os.pathsep.join(paths)} if paths else {})


def main() -> int:
    options = arguments()
    with tempfile.TemporaryDirectory() as folder:
        commands = {BARE: Command((sys.executable, "-c", IMPORTS))}
        commands |= own_answers(options, empty_registry(Path(folder)))
        commands |= dict(stand_in_answers(Path(folder)))
        medians_s = compare(commands, options.rounds)
    ratios = {name: value / medians_s[BARE] for name, value in medians_s.items()}
    print_table(medians_s, ratios)
    print(f"\nmedians of {options.rounds}; limit {options.limit}")
    return int(max(ratios.values()) > options.limit)


def own_answers(options: argparse.Namespace, empty: Path) -> dict[str, Command]:
    """This machine's, each named by how its answer matches."""
    asked = (*GET_PLAN, *(options.rest or DEFAULT_ARGUMENTS))
    own = (*asked, *(("--registry", options.registry) if options.registry else ()))
    commands = [Command(own), Command((*asked, "--registry", str(empty)))]
    named = {f"this machine, {json.loads(command.run())['match']}": command for command in commands}
    if len(named) == 1:
        print("the registry holds no answer: of this machine's only an estimated one is timed")
    return named


def stand_in_answers(folder: Path) -> Iterator[tuple[str, Command]]:
    """Those for cards that are not here, each named by its question and where the denoiser goes."""
    for (card, vram, host), model in product(QUESTIONS, MODELS):
        place = folder / card.name.replace(" ", "-")
        make_stand_in(place, card)
        asked = ("--model", model, "--vram", vram, "--host-memory", host)
        beside = ("--resolution", "1024x1024", "--registry", str(folder / EMPTY))
        command = Command((*GET_PLAN, *asked, *beside), (place,))
        label = f"{model}, {card.name.removeprefix('NVIDIA ')}, {vram} of {host} host"
        yield f"{label}: {placement(command)}", command


def placement(command: Command) -> str:
    """Where the denoiser of an estimated plan for a GPU lies. Raises ValueError for another."""
    answer = json.loads(command.run())
    if answer["match"] != "estimated" or not answer["plan"]["process"]["expandable_segments"]:
        raise ValueError(f"not an estimated plan for a GPU: {answer['notes']}")
    components = answer["plan"]["pipeline"]["components"]
    denoiser = components.get("transformer") or components.get("unet") or {}
    return str(denoiser.get("placement", {}).get("kind", "resident"))


def empty_registry(folder: Path) -> Path:
    open_registry(folder / EMPTY)
    return folder / EMPTY


def compare(commands: Mapping[str, Command], rounds: int) -> dict[str, float]:
    """Median wall time by name; the commands take turns, so that drift meets them alike."""
    for command in commands.values():
        command.run()
    samples_s: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            samples_s[name].append(wall_s(command))
    return {name: statistics.median(values) for name, values in samples_s.items()}


def wall_s(command: Command) -> float:
    """Wall time of one run. Raises CalledProcessError unless it exits with 0."""
    start = time.perf_counter()
    command.run()
    return time.perf_counter() - start


def print_table(medians_s: Mapping[str, float], ratios: Mapping[str, float]) -> None:
    width = max(map(len, medians_s))
    for name, median_s in medians_s.items():
        print(f"| {name:<{width}} | {median_s * 1000:4.0f} ms | {ratios[name]:.2f} |")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--limit", type=float, default=1.3)
    parser.add_argument("--registry", help="where proved plans are")
    parser.add_argument("rest", nargs="*", help="arguments of get-plan, after --")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
