"""Mixing in processes: the same bytes, and no trace of them when something goes wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cocktail.mix.processes import can_fork
from tests.cocktail.checkpoints import Save, load, weights

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux mixes in processes")
ROOT = Path(__file__).parents[3]
MIX = """
import sys
import cocktail.mix.stream
cocktail.mix.stream._ELEMENTS_TO_FORK = 0
from cocktail.cli.main import main
try:
    main(sys.argv[1:])
finally:
    print("in processes:", "cocktail.mix.processes" in sys.modules)
"""
NO_SECOND_PROCESS = """
import os
fork = os.fork
def once():
    os.fork = never
    return fork()
def never():
    print("limited")
    raise BlockingIOError(11, "Resource temporarily unavailable")
os.fork = once
"""
NO_SEMAPHORES = """
import concurrent.futures.process
def limited():
    print("limited")
    raise NotImplementedError("no named semaphores")
concurrent.futures.process._check_system_limits = limited
"""
WORK = """
import os, sys, time
from cocktail.mix.processes import in_processes
def make():
    os.write(1, b"%d\\n" % os.getpid())
    return lambda item: {}
in_processes(make, range(200), 2, lambda item: None)
"""


def start(code: str, *arguments: object, **options: Any) -> subprocess.Popen[str]:
    """A process of its own session: pytest has loaded torch, so that it does not fork."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], text=True, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, **options,
    )  # fmt: skip


def mixed(*arguments: object, before: str = "") -> tuple[int, str, str]:
    process = start(before + MIX, "mix", *arguments, "--weights", "0.3", "0.7")
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def test_torch_forbids_it() -> None:
    assert "torch" in sys.modules and not can_fork()


@pytest.mark.parametrize("more", [(), ("--max-shard-size", "200B"), ("--no-sync",)])
def test_processes_change_nothing(
    pair: tuple[Path, Path], tmp_path: Path, more: tuple[str, ...]
) -> None:
    for threads in (1, 3):
        output = tmp_path / str(threads)
        status, out, err = mixed(*pair, "--output", output, "--threads", threads, *more)
        assert status == 0, err
        assert f"in processes: {threads > 1}" in out
    one, three = (load(tmp_path / name) for name in ("1", "3"))
    assert one.keys() == three.keys()
    assert all(one[name].equal(three[name]) for name in one)
    records = [(tmp_path / name / "cocktail.json").read_text() for name in ("1", "3")]
    digests = [record.split('"digest": ')[1].split(",")[0] for record in records]
    assert digests[0] == digests[1]


@pytest.mark.parametrize("limit", [NO_SECOND_PROCESS, NO_SEMAPHORES])
def test_threads_mix_where_processes_cannot_start(
    pair: tuple[Path, Path], tmp_path: Path, limit: str
) -> None:
    folders = tmp_path / "threads", tmp_path / "processes"
    for folder, before in zip(folders, (limit, ""), strict=True):
        status, out, err = mixed(*pair, "--output", folder, "--threads", 2, before=before)
        assert status == 0, err
        assert ("limited" in out) == bool(before)
    one, two = map(load, folders)
    assert all(one[name].equal(two[name]) for name in two)


def test_an_error_is_one_line_and_leaves_nothing(save: Save, tmp_path: Path) -> None:
    broken = weights(1)
    broken["encoder.layer.0.output.dense.weight"][2] = float("nan")
    pair = save("a", weights(0)), save("b", broken)
    status, out, err = mixed(*pair, "--output", tmp_path / "out", "--threads", 2)
    assert status == 1 and "in processes: True" in out
    assert err.splitlines()[-1].startswith("cocktail: encoder.layer.0.output.dense.weight")
    assert "Traceback" not in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_process_that_is_killed_ends_the_mix() -> None:
    process = start(WORK.format("os.kill(os.getpid(), 9)"))
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "CocktailError: a process of the mix was killed" in err


@pytest.mark.parametrize("signal_", [signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_the_first(signal_: signal.Signals) -> None:
    process = start(WORK.format("time.sleep(0.1)"))
    assert process.stdout is not None
    for _ in range(2):
        process.stdout.readline()  # both are at work
    started = time.monotonic()
    if signal_ == signal.SIGINT:
        os.killpg(process.pid, signal_)  # as Ctrl-C does
    else:
        process.kill()
    _, err = process.communicate(timeout=60)  # ends when the last of them has closed its output
    assert time.monotonic() - started < 10  # twenty seconds of work were to come, of 200 items
    assert err.count("Traceback") == (signal_ == signal.SIGINT)  # the first one's alone
