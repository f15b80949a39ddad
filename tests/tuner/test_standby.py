"""The worker that is started ahead of its job: of use, of no use, and never left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from registry.plan import PipelineOptions, Plan, ProcessOptions
from registry.record import PeakMemory
from tests.tuner.fake_nvml import H100, FakeNvml
from tests.tuner.fake_worker import (
    CPU,
    ENVIRONMENT,
    GENEROUS,
    JOB,
    MIB,
    Bench,
    trial_job,
    trial_result,
)
from tests.tuner.test_runner import our_children
from tests.tuner.test_runner_parent import CHECKOUT, DIES_WITH_ITS_PARENT, PATIENCE_S, alive, until
from tuner.detect import Detection
from tuner.locks import DeviceLock
from tuner.proc import process_table, proportional_bytes, proportional_file_bytes
from tuner.processes import ProcessTree
from tuner.runner import Outcome, Runner
from tuner.sampler import Sampler
from tuner.standby import LEAST_RAM_BYTES, Standby, standby_pays

GPU = Detection(ENVIRONMENT, 0, H100.uuid, foreign_bytes=0)
TELL = 'tell("ahead" if ahead else "fresh", os.getpid());'
WELL_BEHAVED = TELL + " hello(import_s=1000.0); done()"


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """Fails the test if a process or a folder of a standby is left."""
    before = our_children()
    yield Bench(tmp_path)
    assert our_children() <= before


def runner_of(bench: Bench, body: str = WELL_BEHAVED, **options: Any) -> Runner:
    settings = {"detection": GPU, "nvml": FakeNvml(), "ahead": True, **options}
    return bench.runner(body, **settings)


def run_two(bench: Bench, body: str = WELL_BEHAVED, **options: Any) -> Outcome:
    """The second of two jobs, which had a standby."""
    with closing(runner_of(bench, body, **options)) as runner:
        assert runner.run(JOB, GENEROUS).result is not None
        return runner.run(JOB, GENEROUS)


def folders(bench: Bench) -> set[Path]:
    return set((bench.folder / "scratch").iterdir())


def test_the_next_job_runs_in_the_worker_started_ahead(bench: Bench) -> None:
    outcome = run_two(bench)
    assert outcome.result is not None
    assert (bench.notes / "ahead").exists()
    assert outcome.hidden_s > 900
    assert outcome.log_path.is_file()


def test_any_interpreter_may_have_one(bench: Bench) -> None:
    """As `--python` names it: here a script that starts the real one."""
    python = bench.folder / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S -E "$@"\n')
    python.chmod(0o755)
    command = (str(python), str(bench.script(WELL_BEHAVED)))
    assert run_two(bench, worker_command=command).hidden_s > 900


def test_an_interpreter_that_knows_nothing_of_it_works_without(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for a job that never comes that way."""
    monkeypatch.setattr("tuner.standby.IMPORT_LIMIT_S", 0.2)
    python = bench.folder / "python"
    script = bench.script(WELL_BEHAVED)
    python.write_text(f"#!/bin/sh\nexec {sys.executable} -S -E {script}\n")
    python.chmod(0o755)
    outcome = run_two(bench, worker_command=(str(python),))
    assert outcome.result is not None
    assert outcome.hidden_s == 0.0


def test_a_fresh_worker_hides_nothing(bench: Bench) -> None:
    with closing(runner_of(bench)) as runner:
        assert runner.run(JOB, GENEROUS).hidden_s == 0.0
    with closing(runner_of(bench, ahead=False)) as runner:
        runner.run(JOB, GENEROUS)
        assert runner.run(JOB, GENEROUS).hidden_s == 0.0
    assert not (bench.notes / "ahead").exists()


def test_it_gets_the_environment_and_the_folder_of_its_job(bench: Bench) -> None:
    body = """
    if ahead:
        tell("variables", json.dumps(dict(os.environ)))
        tell("folder", os.getcwd())
        tell("job", json.dumps(job))
        print("it talks", flush=True)
    hello(); done()
    """
    job = trial_job(bench.folder / "compiled")
    expandable = ProcessOptions(expandable_segments=True)
    plan = Plan(pipeline=PipelineOptions(components={}), process=expandable)
    with closing(runner_of(bench, body)) as runner:
        runner.run(JOB, GENEROUS)
        outcome = runner.run(job.model_copy(update={"plan": plan}), GENEROUS)
    variables = json.loads(bench.note("variables"))
    assert variables["TORCHINDUCTOR_CACHE_DIR"] == str(bench.folder / "compiled")
    assert variables["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"
    assert Path(bench.note("folder")) == outcome.log_path.parent
    assert json.loads(bench.note("job"))["compile_cache_dir"] == str(bench.folder / "compiled")
    assert outcome.log_path.read_text() == "it talks\n"


@pytest.mark.parametrize(
    "waiting",
    [
        "if ahead: sys.exit(3)",
        "if ahead: os.kill(os.getpid(), signal.SIGSEGV)",
        "if ahead: write(b'what?\\n'); time.sleep(600)",
        "if ahead: os.close(events); time.sleep(600)",
        "if ahead: say({'event': 'ready', 'protocol': 0}); time.sleep(600)",
    ],
    ids=["exit", "crash", "nonsense", "closed", "other protocol"],
)
def test_one_that_never_gets_ready_costs_nothing(bench: Bench, waiting: str) -> None:
    outcome = run_two(bench, waiting=waiting)
    assert outcome.result is not None
    assert not (bench.notes / "ahead").exists()
    assert outcome.hidden_s == 0.0
    assert len(folders(bench)) == 2


def test_one_that_hangs_is_waited_for_as_long_as_an_import_takes(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuner.standby.IMPORT_LIMIT_S", 0.2)
    outcome = run_two(bench, waiting="if ahead: time.sleep(600)")
    assert outcome.result is not None
    assert not (bench.notes / "ahead").exists()


@pytest.mark.parametrize(
    "waiting",
    [
        "if ahead: ready(); sys.exit(0)",
        "if ahead: ready(); receive(); sys.exit(0)",
        "if ahead: ready(); receive(); os.kill(os.getpid(), signal.SIGKILL)",
    ],
    ids=["before its job", "with its job", "killed with its job"],
)
def test_one_that_dies_waiting_loses_no_trial(bench: Bench, waiting: str) -> None:
    outcome = run_two(bench, waiting=waiting)
    assert outcome.result is not None
    assert not (bench.notes / "ahead").exists()
    assert len(folders(bench)) == 2


def test_none_is_started_again_after_one_that_failed(bench: Bench) -> None:
    waiting = """
    if ahead:
        tell(f"started-{os.getpid()}", "")
        sys.exit(3)
    """
    with closing(runner_of(bench, waiting=waiting)) as runner:
        for _ in range(3):
            assert runner.run(JOB, GENEROUS).result is not None
    assert len(list(bench.notes.glob("started-*"))) == 1


def test_a_crash_after_the_greeting_is_the_trials_own(bench: Bench) -> None:
    body = "hello()\nif ahead: os.kill(os.getpid(), signal.SIGSEGV)\ndone()"
    outcome = run_two(bench, body)
    assert outcome.failure is not None
    assert "SIGSEGV" in outcome.failure.message


def test_a_job_of_another_environment_gets_a_fresh_worker_and_the_next_a_standby(
    bench: Bench,
) -> None:
    body = 'tell("threads", os.environ.get("OMP_NUM_THREADS"));' + WELL_BEHAVED
    plan = Plan(pipeline=PipelineOptions(components={}), process=ProcessOptions(threads=3))
    job = trial_job(bench.folder / "compiled").model_copy(update={"plan": plan})
    with closing(runner_of(bench, body)) as runner:
        runner.run(JOB, GENEROUS)
        assert runner.run(job, GENEROUS).hidden_s == 0.0
        assert bench.note("threads") == "3"
        assert not (bench.notes / "ahead").exists()
        assert runner.run(JOB, GENEROUS).hidden_s > 0.0


def test_closing_ends_it_and_lets_go_of_the_device(bench: Bench) -> None:
    waiting = 'if ahead: tell("waiting", os.getpid()); ready(); receive()'
    with DeviceLock("gpu", bench.folder / "locks") as lock:
        runner = runner_of(bench, waiting=waiting, lock=lock)
        outcome = runner.run(JOB, GENEROUS)
        until((bench.notes / "waiting").exists)
        runner.close()
        assert not alive(int(bench.note("waiting")))
        assert folders(bench) == {outcome.log_path.parent}
        runner.close()
    with DeviceLock("gpu", bench.folder / "locks").acquire(patience_s=0):
        pass


RUN = """
import sys
from pathlib import Path
from tests.tuner.fake_nvml import FakeNvml
from tests.tuner.fake_worker import GENEROUS, JOB
from tests.tuner.test_standby import GPU
from tuner.locks import DeviceLock
from tuner.runner import Runner
folder, worker = Path(sys.argv[1]), sys.argv[2]
with DeviceLock("gpu", folder / "locks", ["tuner", "run"]) as lock:
    runner = Runner(
        sys.executable, GPU, lock, folder / "scratch", environ={}, nvml=FakeNvml(), ahead=True,
        worker_command=(sys.executable, "-S", "-E", worker), kill_grace_s=0.5,
    )
    runner.run(JOB, GENEROUS)
"""


@pytest.mark.parametrize("stopped", [False, True], ids=["waiting", "held up"])
def test_kill_of_the_run_takes_it_along_and_frees_the_device(bench: Bench, stopped: bool) -> None:
    waiting = DIES_WITH_ITS_PARENT.replace("hello()\n", "") + (
        'if ahead: tell("waiting", os.getpid());'
        + ("time.sleep(600)" if stopped else "ready(); receive()")
    )
    body = 'hello(); until_noted("waiting"); progress("steps"); tell("worker", 1); time.sleep(600)'
    script = bench.script(body, waiting)
    run = subprocess.Popen(
        [sys.executable, "-c", RUN, str(bench.folder), str(script)],
        cwd=CHECKOUT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(CHECKOUT), *sys.path])},
    )
    until(lambda: (bench.notes / "worker").exists() or run.poll() is not None)
    standby = int(bench.note("waiting"))
    if stopped:
        until(lambda: process_table()[standby].state == "T")
    run.kill()
    run.communicate()
    until(lambda: not alive(standby))
    with DeviceLock("gpu", bench.folder / "locks").acquire(patience_s=PATIENCE_S):
        pass


def test_it_weighs_nothing_in_the_running_trial(bench: Bench) -> None:
    waiting = f'if ahead: ballast = bytearray({400 * MIB}); tell("heavy", 1); ready(); receive()'
    body = 'hello(); until_noted("heavy"); progress("load"); time.sleep(0.6); done()'
    with closing(runner_of(bench, body, waiting=waiting)) as runner:
        outcome = runner.run(JOB, GENEROUS)
    assert outcome.result is not None
    assert 0 < outcome.host_peak_bytes < 200 * MIB


def test_its_share_of_libraries_is_known() -> None:
    own = proportional_file_bytes(os.getpid())
    assert 0 < own < proportional_bytes(os.getpid())
    assert proportional_file_bytes(2**22 + 1) == 0


def test_its_import_is_held_up_while_a_trial_is_timed(bench: Bench) -> None:
    waiting = """
    if ahead:
        tell("importing", os.getpid())
        until_noted("timed")
        ready()
        receive()
    """
    body = """
    def state():
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]
    def until_state(stopped):
        while (state() == "T") != stopped:
            time.sleep(0.01)
    hello()
    if not ahead:
        until_noted("importing")
        with open(os.path.join(NOTES, "importing")) as file:
            pid = int(file.read())
        progress("load"); progress("steps"); until_state(True)
        progress("score"); until_state(False)
        progress("images"); until_state(True)
        tell("timed", 1)
    done()
    """
    outcome = run_two(bench, body, waiting=waiting)
    assert outcome.result is not None
    assert outcome.hidden_s == 0.0, "the hello of this worker says that it imported nothing"


def test_time_held_up_is_no_import_time(bench: Bench) -> None:
    """It is told to the worker, whose clock went on."""
    waiting = """
    if ahead:
        tell("importing", os.getpid())
        until_noted("timed")
        ready()
        line = sys.stdin.readline()
        tell("handover", line)
        os.environ.update(json.loads(line)["environment"])
    """
    body = """
    hello()
    if not ahead:
        until_noted("importing"); progress("steps"); time.sleep(0.3); tell("timed", 1)
    done()
    """
    run_two(bench, body, waiting=waiting)
    assert json.loads(bench.note("handover"))["paused_s"] > 0.0


def test_the_next_trial_may_itself_have_one_behind_it(bench: Bench) -> None:
    with closing(runner_of(bench)) as runner:
        pids: set[str] = set()
        for _ in range(4):
            assert runner.run(JOB, GENEROUS).result is not None
            pids.add((bench.notes / ("ahead" if pids else "fresh")).read_text())
    assert len(pids) == 4


class Taken(FakeNvml):
    """A device of which a worker takes something as soon as it has its job."""

    def __init__(self, note: Path) -> None:
        super().__init__()
        self._note = note

    def used_bytes(self, uuid: str) -> int:  # noqa: ARG002
        return 500 * MIB if self._note.exists() else 100 * MIB


def test_its_device_level_is_that_from_before_its_job(bench: Bench) -> None:
    measured = trial_result(PeakMemory(peak_vram_bytes=1, load_peak_vram_bytes=1))
    body = f"""
    if ahead: tell("taken", 1)
    hello(); progress("load"); time.sleep(0.1)
    say(json.loads({measured!r}))
    os.remove(os.path.join(NOTES, "taken")) if ahead else None
    """
    job = trial_job(bench.folder / "compiled")
    with closing(runner_of(bench, body, nvml=lambda: Taken(bench.notes / "taken"))) as runner:
        runner.run(job, GENEROUS)
        outcome = runner.run(job, GENEROUS)
    assert outcome.result is not None
    assert outcome.device_growth_peak_bytes == 400 * MIB


def test_libraries_that_it_shares_are_the_trials_in_full(bench: Bench) -> None:
    tree = ProcessTree(os.getpid(), "none")
    sampler = Sampler(tree, None, time.monotonic, lambda: 10**12)
    sampler.begin(0)
    assert 10**12 < sampler.host_peak_bytes < 2 * 10**12


def test_where_it_pays() -> None:
    hardware = ENVIRONMENT.hardware.model_copy(update={"host_ram_bytes": LEAST_RAM_BYTES})
    roomy = replace(GPU, environment=ENVIRONMENT.model_copy(update={"hardware": hardware}))
    assert standby_pays(roomy, cores=16)
    assert not standby_pays(roomy, cores=2)
    assert not standby_pays(replace(roomy, device_uuid=None, device_index=None), cores=16)
    small = hardware.model_copy(update={"host_ram_bytes": LEAST_RAM_BYTES - 1})
    environment = ENVIRONMENT.model_copy(update={"hardware": small})
    assert not standby_pays(replace(roomy, environment=environment), cores=16)
    assert not standby_pays(CPU, cores=16)


def test_what_may_still_be_set(bench: Bench) -> None:
    class Nobody:
        pass

    worker: Any = Nobody()
    standby = Standby(worker, {"A": "1"}, lambda: 0.0)
    assert standby.suits({"A": "1"})
    assert standby.suits({"A": "1", "TRITON_CACHE_DIR": "/x"})
    assert not standby.suits({"A": "2"})
    assert not standby.suits({"A": "1", "OMP_NUM_THREADS": "1"})
    assert not standby.suits({})
