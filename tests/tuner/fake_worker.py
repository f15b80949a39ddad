"""Workers of a few lines, in place of the one that holds torch."""

from __future__ import annotations

import json
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from registry.environment import Environment, Hardware, Runtime
from registry.plan import PipelineOptions, Plan
from registry.record import Measurement, PeakMemory, ShapeMeasurement
from registry.workload import ModelRef, Shape, Workload
from tuner.detect import Detection
from tuner.model_spec import ModelSpec
from tuner.protocol import EnvironmentJob, Hello, TrialJob, TrialResult
from tuner.runner import Limits, Runner

MIB = 2**20
ENVIRONMENT = Environment(
    hardware=Hardware(
        device="cpu",
        name="a processor",
        vram_bytes=2**34,
        host_ram_bytes=2**34,
        cpu_model="a processor",
        cpu_cores=2,
    ),
    runtime=Runtime(
        python="3.11",
        torch="2.13.0",
        torchao=None,
        diffusers=None,
        transformers=None,
        accelerate=None,
        apply_engine=1,
    ),
)
CPU = Detection(ENVIRONMENT, device_index=None, device_uuid=None, foreign_bytes=0)
WORKLOAD = Workload(shapes=(Shape(height=64, width=64),))
JOB = EnvironmentJob()
RESULT = {"event": "environment_result"}
GENEROUS = Limits(wall_s=60, progress_s=60)

PRELUDE = """\
import json, os, signal, subprocess, sys, time
events = int(os.environ["TUNER_EVENT_FD"])
ahead = "--ahead" in sys.argv
if not ahead:
    job = json.load(sys.stdin)
def write(data):
    os.write(events, data)
def say(event):
    write(json.dumps(event).encode() + b"\\n")
def hello(**changes):
    say({**HELLO, **changes})
def pss():
    with open("/proc/self/smaps_rollup") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Pss:")) * 1024
def progress(phase):
    say({"event": "progress", "phase": phase})
def done():
    say({"event": "environment_result"})
def tell(name, text):
    with open(os.path.join(NOTES, name + ".part"), "w") as file:
        file.write(str(text))
    os.rename(os.path.join(NOTES, name + ".part"), os.path.join(NOTES, name))
def until_noted(name):
    while not os.path.exists(os.path.join(NOTES, name)):
        time.sleep(0.01)
def ready():
    say({"event": "ready", "protocol": HELLO["protocol"]})
def receive():
    global job
    line = sys.stdin.readline()
    if not line:
        sys.exit(0)
    handover = json.loads(line)
    os.environ.update(handover["environment"])
    with open(handover["job"]) as file:
        job = json.load(file)
"""
AHEAD = """
if ahead:
    ready()
    receive()
"""


@dataclass(frozen=True)
class Bench:
    """Makes runners for workers given as source text. `notes` is where workers may write."""

    folder: Path

    @property
    def notes(self) -> Path:
        return self.folder / "notes"

    def script(self, body: str, ahead: str = AHEAD) -> Path:
        """The worker's file. `body` may use what the prelude defines; before it comes `ahead`."""
        self.notes.mkdir(exist_ok=True)
        hello = Hello(
            tuner_version="0.1.0", environment=ENVIRONMENT, host_baseline_bytes=0, import_s=0.0
        )
        values = f"HELLO = json.loads({hello.model_dump_json()!r})\nNOTES = {str(self.notes)!r}\n"
        path = self.folder / "worker.py"
        path.write_text(PRELUDE + values + "\n".join(map(textwrap.dedent, (ahead, body))))
        return path

    def runner(self, body: str, *, waiting: str = AHEAD, **options: Any) -> Runner:
        command = (sys.executable, "-S", "-E", str(self.script(body, waiting)))
        settings = {"environ": {}, "worker_command": command, "kill_grace_s": 0.5, **options}
        return Runner(
            sys.executable, settings.pop("detection", CPU), settings.pop("lock", None),
            self.folder / "scratch", **settings,
        )  # fmt: skip

    def note(self, name: str) -> str:
        return (self.notes / name).read_text()


def trial_job(compile_cache_dir: Path) -> TrialJob:
    return TrialJob(
        model=ModelSpec(ref=ModelRef(name="tiny", source="catalog")),
        workload=WORKLOAD,
        plan=Plan(pipeline=PipelineOptions(components={})),
        rung="denoiser",
        budget_bytes=2**30,
        prompts=("a cat",),
        seeds=(0,),
        compile_cache_dir=str(compile_cache_dir),
    )


def trial_result(memory: PeakMemory, contaminated: str | None = None) -> str:
    """The JSON text of a trial's result as the worker would send it."""
    times = ShapeMeasurement(shape=WORKLOAD.shapes[0], steps=2, step_ms=1.0, first_call_s=0.1)
    measurement = Measurement(
        rung="denoiser",
        shapes=(times,),
        memory=memory,
        load_s=0.1,
        start_s=0.1,
        contaminated=contaminated,
    )
    result = TrialResult(measurement=measurement, calibrated=False)
    return json.dumps(result.model_dump(mode="json"))
