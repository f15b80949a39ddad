"""What happens to a trial when the run itself is ended: real processes, real signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from registry.errors import DeviceBusy
from tests.tuner.fake_worker import GENEROUS, JOB, Bench
from tuner.locks import DeviceLock
from tuner.proc import process_table
from tuner.processes import end_left_behind

CHECKOUT = Path(__file__).parents[2]
PATIENCE_S = 30.0

RUN = """
import sys
from pathlib import Path
from registry.errors import TunerError
from tests.tuner.fake_worker import CPU, GENEROUS, JOB
from tuner.locks import DeviceLock
from tuner.runner import Runner
folder, worker = Path(sys.argv[1]), sys.argv[2]
try:
    with DeviceLock("cpu", folder / "locks", ["tuner", "run"]) as lock:
        runner = Runner(
            sys.executable, CPU, lock, folder / "scratch",
            environ={}, worker_command=(sys.executable, "-S", "-E", worker), kill_grace_s=0.5,
        )
        runner.run(JOB, GENEROUS)
except TunerError as error:
    print(type(error).__name__, flush=True)
    sys.exit(error.exit_code)
"""
DIES_WITH_ITS_PARENT = f"""
sys.path += {[str(CHECKOUT), *sys.path]!r}
from tuner.processes import die_with_parent
die_with_parent(int(os.environ["TUNER_PARENT_PID"]))
hello()
"""
GRANDCHILD = """
child = subprocess.Popen(
    [sys.executable, "-S", "-c", "import time; time.sleep(600)"], start_new_session=True
)
tell("grandchild", child.pid)
"""
SLEEPS = """
tell("worker", os.getpid())
time.sleep(600)
"""

# Any run on this machine, one of another test too, ends what it knows by this variable.
UNRECOGNISED = """
tell("worker.next", os.getpid())
renames = f"import os, time; os.rename({NOTES!r} + '/worker.next', {NOTES!r} + '/worker')"
del os.environ["TUNER_PARENT_PID"]
os.execv(sys.executable, [sys.executable, "-S", "-c", renames + "; time.sleep(600)"])
"""


def until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def alive(pid: int) -> bool:
    process = process_table().get(pid)
    return process is not None and not process.is_dead


def start_run(bench: Bench, body: str) -> subprocess.Popen[str]:
    """A run in a process of its own, returned when its worker is at work."""
    worker = bench.script(body)
    run = subprocess.Popen(
        [sys.executable, "-c", RUN, str(bench.folder), str(worker)],
        cwd=CHECKOUT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(CHECKOUT), *sys.path])},
        stdout=subprocess.PIPE,
        text=True,
    )
    until(lambda: (bench.notes / "worker").exists() or run.poll() is not None)
    assert run.poll() is None
    return run


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_kill_of_the_run_takes_its_worker_along_and_frees_the_device(bench: Bench) -> None:
    run = start_run(bench, DIES_WITH_ITS_PARENT + SLEEPS)
    lock = DeviceLock("cpu", bench.folder / "locks")
    with pytest.raises(DeviceBusy, match=f"process {run.pid} \\(tuner run\\)"):
        lock.acquire()
    run.kill()
    run.communicate()
    with lock.acquire(patience_s=PATIENCE_S):
        assert not alive(int(bench.note("worker")))


def test_device_stays_locked_while_a_trial_outlives_its_run(bench: Bench) -> None:
    run = start_run(bench, "hello()\n" + UNRECOGNISED)
    run.kill()
    run.communicate()
    worker = int(bench.note("worker"))
    assert alive(worker)
    lock = DeviceLock("cpu", bench.folder / "locks")
    with pytest.raises(DeviceBusy, match=f"run that has died .* still holds cpu: process {worker}"):
        lock.acquire(patience_s=0.2)
    os.kill(worker, signal.SIGKILL)
    with lock.acquire(patience_s=PATIENCE_S):
        assert not alive(worker)


def test_next_run_ends_what_a_killed_one_left_behind(bench: Bench) -> None:
    run = start_run(bench, DIES_WITH_ITS_PARENT + GRANDCHILD + SLEEPS)
    grandchild = int(bench.note("grandchild"))
    run.kill()
    run.communicate()
    until(lambda: not alive(int(bench.note("worker"))))
    assert bench.runner("hello(); done()").run(JOB, GENEROUS).result is not None
    until(lambda: not alive(grandchild))


def test_processes_of_a_living_run_are_left_alone(bench: Bench) -> None:
    run = start_run(bench, "hello()\n" + SLEEPS)
    assert int(bench.note("worker")) not in end_left_behind()
    run.terminate()
    run.communicate()


@pytest.mark.parametrize(
    ("number", "exit_code", "words"),
    [(signal.SIGTERM, 130, "Interrupted\n"), (signal.SIGINT, -signal.SIGINT, "")],
)
def test_polite_end_of_the_run(bench: Bench, number: int, exit_code: int, words: str) -> None:
    run = start_run(bench, "hello()\n" + GRANDCHILD + SLEEPS)
    run.send_signal(number)
    said, _ = run.communicate(timeout=PATIENCE_S)
    assert (run.returncode, said) == (exit_code, words)
    assert not alive(int(bench.note("worker")))
    assert not alive(int(bench.note("grandchild")))
    with DeviceLock("cpu", bench.folder / "locks").acquire(patience_s=0):
        pass


def test_worker_whose_parent_has_died_already_does_not_start(bench: Bench) -> None:
    code = (
        f"import sys; sys.path += {sys.path!r}; from tuner.processes import die_with_parent; "
        "die_with_parent(1); print('alive')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, cwd=CHECKOUT, check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert done.stdout == b""


def test_worker_inherits_the_lock_and_knows_its_parent(bench: Bench) -> None:
    body = """
    hello()
    tell("variables", json.dumps(dict(os.environ)))
    tell("files", json.dumps([os.readlink(f"/proc/self/fd/{n}") for n in range(3, 20)
                              if os.path.exists(f"/proc/self/fd/{n}")]))
    done()
    """
    with DeviceLock("cpu", bench.folder / "locks") as lock:
        runner = bench.runner(body, lock=lock)
        assert runner.run(JOB, GENEROUS).result is not None
        holder = lock.holder()
        assert holder is not None
        assert (holder.pid, holder.worker_pid) == (os.getpid(), None)
    variables = json.loads(bench.note("variables"))
    assert variables["TUNER_PARENT_PID"] == str(os.getpid())
    assert str(lock.path) in json.loads(bench.note("files"))
