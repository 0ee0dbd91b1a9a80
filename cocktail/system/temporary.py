"""Temporary folders; those that a killed run leaves behind are cleared by the next.

A lock on a file inside shows that the run that made a folder is still alive; until the lock is
there, the process id at the end of the folder's name does.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import gettempdir, mkdtemp

from cocktail.errors import OutputError

LOCK = ".lock"


def folder_prefix(output: Path) -> str:
    """The prefix of the temporary folders beside an output."""
    return f".{output.name}.cocktail-tmp-"


@contextmanager
def temporary_parts(output: Path, what: str = "parts") -> Iterator[Path]:
    """Make a folder beside the output for intermediate results; it is removed at the end.

    Raises:
        OutputError: it cannot be made.
    """
    place = Path(os.path.realpath(output))
    folder = place.parent / f"{folder_prefix(place)}{what}-{os.getpid()}"
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        clear_abandoned(place.parent, folder_prefix(place))
        folder.mkdir()
        lock = hold(folder)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made ({error.strerror})") from None
    try:
        yield folder
    finally:
        os.close(lock)
        shutil.rmtree(folder, ignore_errors=True)


def hold(folder: Path) -> int:
    """Mark a folder as in use for as long as the returned descriptor stays open."""
    descriptor = os.open(folder / LOCK, os.O_CREAT | os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


def clear_abandoned(parent: Path, prefix: str) -> None:
    """Remove the folders that killed runs left, and none of a run that is alive."""
    for folder in parent.iterdir():
        if folder.name.startswith(prefix) and folder.is_dir() and not _is_in_use(folder):
            shutil.rmtree(folder, ignore_errors=True)


def _is_in_use(folder: Path) -> bool:
    try:
        descriptor = os.open(folder / LOCK, os.O_RDWR)
    except OSError:
        # Not locked yet, or about to be renamed: ask for the process.
        return _is_alive(folder.name.rpartition("-")[2])
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    else:
        return False
    finally:
        os.close(descriptor)


def _is_alive(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except PermissionError:
        return True  # another user's
    except (OSError, ValueError, OverflowError):
        return False
    return True


_PREFIX = "cocktail-adapter-"


class View:
    """A temporary folder that is removed when nothing refers to it any longer."""

    def __init__(self) -> None:
        clear_abandoned(Path(gettempdir()), _PREFIX)
        self.folder = Path(mkdtemp(prefix=_PREFIX, suffix=f"-{os.getpid()}"))
        weakref.finalize(self, _remove, self.folder, hold(self.folder), os.getpid())


def _remove(folder: Path, lock: int, owner: int) -> None:
    if os.getpid() == owner:  # a forked process has a copy of the view, not a folder of its own
        os.close(lock)
        shutil.rmtree(folder, ignore_errors=True)
