"""Wall time and peak memory of a whole process tree, sampled from /proc; rounds and medians."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

SAMPLE_SECONDS = 0.02
MB = 1e6
KINDS = {"RssAnon": "anonymous", "RssFile": "file", "RssShmem": "shared"}


class CommandError(RuntimeError):
    """A measured command ended with a status other than 0."""


@dataclass
class Usage:
    """What one run of a command took. Bytes are peaks of the sampled sum over the process tree."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    anonymous: int = 0  # heap, stacks, private copies: memory that only this process can free
    file: int = 0  # mapped file pages: the page cache gives them up when memory runs short
    shared: int = 0  # shared memory and tmpfs
    total: int = 0  # the largest sum of the three at one instant, not the sum of their peaks
    # The kernel's own peak of the first process, to hold the samples against; never less than what
    # this process held when it forked.
    maxrss: int = 0
    stdout: str = field(default="", repr=False)


def run(command: list[str], env: Mapping[str, str] | None = None) -> Usage:
    """Run `command` to its end and measure it.

    Raises CommandError, with the end of what the command wrote, when it fails.
    """
    usage = Usage()
    started = time.perf_counter()
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true", **(env or {})},
    )
    ended = threading.Event()
    sampler = threading.Thread(target=sample, args=(process.pid, usage, ended))
    sampler.start()
    # The pipes are drained by threads, so that wait4, which alone returns the rusage, can be ours.
    output: dict[str, str] = {}
    readers = [
        threading.Thread(target=lambda name=name, pipe=pipe: output.update({name: pipe.read()}))
        for name, pipe in (("stdout", process.stdout), ("stderr", process.stderr))
    ]
    for reader in readers:
        reader.start()
    _, status, resources = os.wait4(process.pid, 0)
    usage.seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    ended.set()
    for thread in (sampler, *readers):
        thread.join()
    usage.cpu_seconds = resources.ru_utime + resources.ru_stime
    usage.maxrss = resources.ru_maxrss * 1024
    usage.stdout = output["stdout"]
    if process.returncode != 0:
        tail = "\n".join((output["stdout"] + output["stderr"]).splitlines()[-25:])
        raise CommandError(f"{' '.join(command)}\nended with {process.returncode}:\n{tail}")
    return usage


def sample(pid: int, usage: Usage, ended: threading.Event) -> None:
    """Keep the peaks until `ended`.

    /proc/PID/status, not smaps_rollup: the counters cost microseconds, while smaps_rollup walks
    every page under the lock that the measured process needs for its next mapping.
    """
    while not ended.wait(SAMPLE_SECONDS):
        now = dict.fromkeys(KINDS.values(), 0)
        for member in process_tree(pid):
            for kind, size in resident(member).items():
                now[kind] += size
        for kind, size in now.items():
            setattr(usage, kind, max(getattr(usage, kind), size))
        usage.total = max(usage.total, sum(now.values()))


def process_tree(pid: int) -> Iterable[int]:
    yield pid
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        children = [child for task in threads for child in (task / "children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return
    for child in children:
        yield from process_tree(int(child))


def resident(pid: int) -> dict[str, int]:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    fields = (line.split() for line in status.splitlines())
    return {KINDS[f[0][:-1]]: int(f[1]) * 1024 for f in fields if f and f[0][:-1] in KINDS}


def interleave(runs: Mapping[str, Callable[[], float]], repeats: int) -> None:
    """Run A B C, A B C, ...: a slow minute of the machine then hits all of them alike.

    A run returns its seconds, which are printed as they come.
    """
    for number in range(repeats):
        for name, once in runs.items():
            print(f"round {number + 1}/{repeats}: {name} {once():.1f} s", flush=True)


def machine() -> dict[str, object]:
    """What a reader of the figures wants to know about where they come from."""
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load_at_start": os.getloadavg()[0],
        "python": platform.python_version(),
    }


def medians(usages: list[Usage]) -> dict[str, float]:
    names = ("seconds", "cpu_seconds", "anonymous", "file", "shared", "total", "maxrss")
    return {name: statistics.median(getattr(usage, name) for usage in usages) for name in names}


def table(rows: list[list[str]]) -> str:
    """A Markdown table whose first row is the header."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)) + " |" for r in rows
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])
