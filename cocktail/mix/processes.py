"""Share work among processes: NumPy's short calls from several threads wait for one interpreter."""

from __future__ import annotations

import ctypes
import multiprocessing
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any, TypeVar

from tqdm import TMonitor

from cocktail.errors import CocktailError

Item = TypeVar("Item")
Result = TypeVar("Result")

_INTERRUPTIONS = {signal.SIGINT, signal.SIGTERM}
_PR_SET_PDEATHSIG = 1
_call: Callable[[int], Any] | None = None
"""What a process does with the number of an item."""


def can_fork() -> bool:
    """Whether a copy of this process is sound: Linux, no threads but tqdm's, and no torch, which
    has threads and devices of its own."""
    others = [thread for thread in threading.enumerate() if not isinstance(thread, TMonitor)]
    return sys.platform == "linux" and len(others) == 1 and "torch" not in sys.modules


def in_processes(
    make: Callable[[], Callable[[Item], Result]],
    items: Sequence[Item],
    processes: int,
    done: Callable[[Item], None],
) -> list[Result] | None:
    """Call a function with each item, in processes that are copies of this one.

    Args:
        make: called once in each process, for the function.
        items: not pickled; results are, and errors.
        done: called here, by one thread, when an item's result has arrived.

    Returns:
        The results, in the order of the items; ``None`` where the system starts no processes.

    Raises:
        CocktailError: a process was killed.
        Exception: the first that the function raised; no further items are begun then.
    """
    executor = None
    # An interruption while they start would leave them without anyone to end them.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _INTERRUPTIONS)

    def tell(item: Item, future: Future[Result]) -> None:
        if not future.cancelled() and future.exception() is None:
            done(item)

    try:
        executor = _started(processes, make, items)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if executor is None:
            return None
        futures = [executor.submit(_run, number) for number in range(len(items))]
        for future, item in zip(futures, items, strict=True):
            future.add_done_callback(partial(tell, item))
        ended, _ = wait(futures, return_when=FIRST_EXCEPTION)
        executor.shutdown(cancel_futures=True)
        for future in ended:
            future.result()
        return [future.result() for future in futures]
    except BrokenProcessPool:
        raise CocktailError(
            "a process of the mix was killed - most often memory has run out - mix with one thread "
            "(--threads 1)"
        ) from None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if executor is not None:
            executor.shutdown(cancel_futures=True)


def _started(processes: int, *arguments: Any) -> ProcessPoolExecutor | None:
    """All of the processes, at work, or none."""
    before = set(multiprocessing.active_children())
    try:
        context = multiprocessing.get_context("fork")
        executor = ProcessPoolExecutor(processes, context, _start, arguments)
        executor.submit(int)
    except (OSError, NotImplementedError):  # too many processes, no room, no semaphores
        for child in set(multiprocessing.active_children()) - before:
            child.kill()
        return None
    return executor


def _start(make: Callable[[], Callable[[Item], Result]], items: Sequence[Item]) -> None:
    global _call
    # Ctrl-C reaches every process of the terminal, and is the first one's to answer.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _INTERRUPTIONS)
    # Nor does one outlive the first, which may be killed.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    function = make()
    _call = lambda number: function(items[number])  # noqa: E731


def _run(number: int) -> Any:
    if _call is None:
        raise RuntimeError("the process has not been started")
    return _call(number)
