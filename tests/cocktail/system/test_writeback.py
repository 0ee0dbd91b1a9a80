"""The disk starts on whole runs of what a thread wrote, on each byte once, and on nothing else."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from cocktail.system import writeback
from cocktail.system.writeback import Writeback

Calls = list[tuple[int, int, int]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    monkeypatch.setattr(writeback, "ENOUGH", 100)
    return []


def followed(calls: Calls) -> Writeback:
    found = Writeback()
    found._sync_file_range = lambda file, start, count, _: calls.append((file, start, count))
    return found


def test_a_run_is_started_when_it_is_long_enough(calls: Calls) -> None:
    found = followed(calls)
    for start in range(0, 240, 40):
        found.wrote(3, start, start + 40)
    assert calls == [(3, 0, 120), (3, 120, 120)]


def test_what_lies_elsewhere_is_a_run_of_its_own(calls: Calls) -> None:
    found = followed(calls)
    found.wrote(3, 0, 40)
    found.wrote(3, 80, 90)  # a gap
    found.wrote(4, 90, 250)  # another file
    found.wrote(4, 1000, 1001)  # nothing is left to start before it
    assert calls == [(3, 0, 40), (3, 80, 10), (4, 90, 160)]


def test_threads_do_not_break_each_others_runs(calls: Calls) -> None:
    found = followed(calls)
    turns = [threading.Barrier(2) for _ in range(4)]

    def write(first: int) -> None:
        for number, turn in enumerate(turns):
            turn.wait()
            found.wrote(3, first + 25 * number, first + 25 * number + 25)

    threads = [threading.Thread(target=write, args=(first,)) for first in (0, 5000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(calls) == [(3, 0, 100), (3, 5000, 100)]


def test_the_system_takes_the_calls(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(1000))
    descriptor = os.open(path, os.O_RDWR)
    try:
        found = Writeback()
        if found._sync_file_range is None:
            pytest.skip("this system has no sync_file_range")
        assert found._sync_file_range(descriptor, 0, 1000, writeback._SYNC_FILE_RANGE_WRITE) == 0
    finally:
        os.close(descriptor)
