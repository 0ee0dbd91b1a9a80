"""Check that inputs exist, and write outputs that appear whole or not at all."""

from __future__ import annotations

import math
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from reranker_ft.errors import ArgumentError


def existing_file(path: str | Path) -> Path:
    """Return the path after making sure that it names a file.

    Raises:
        ArgumentError: It does not.
    """
    path = Path(path)
    if not path.is_file():
        found = "is a pipe or a device" if path.exists() else "does not exist"
        found = "is a folder" if path.is_dir() else found
        raise ArgumentError(
            f"{path} {found} - this command reads the file twice, so it must be a regular file - "
            "correct the path"
        )
    return path


def refuse_existing(path: str | Path, *, overwrite: bool = False, folder: bool = False) -> Path:
    """Return where to write an output, after making sure that writing there loses nothing.

    Called before the long work starts, and again by those who write.

    Args:
        folder: Whether the output is a folder, and not a file.

    Returns:
        The path, or where it leads as a link: the link stays.

    Raises:
        ArgumentError: The path exists and ``overwrite`` is false, or its folder does not exist; or
            there is something that a file cannot take the place of.
    """
    path = Path(path)
    place = Path(os.path.realpath(path))
    if path.is_dir() and not folder:
        raise ArgumentError(f"{path} is a folder - the output is one file - name a file in it")
    usual = path.is_file() or path.is_dir()
    if (path.exists() and not usual) or place.is_symlink():
        raise ArgumentError(
            f"{path} is neither a file nor a folder - only these can be replaced by an output - "
            "use the path of a file"
        )
    if path.exists() and not overwrite:
        raise ArgumentError(
            f"{path} exists - outputs are not overwritten by default - pass --overwrite or "
            "another path"
        )
    if not place.parent.is_dir():
        raise ArgumentError(
            f"the folder {place.parent} does not exist - the output is written into an existing "
            "folder - create it first"
        )
    return place


@contextmanager
def new_file(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a path to write, which is renamed to ``path`` when the block ends well.

    Where ``path`` is a link, it leads to the new content afterwards.

    Raises:
        ArgumentError: as ``refuse_existing``.
    """
    temporary = _sibling(refuse_existing(path, overwrite=overwrite))
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(refuse_existing(path, overwrite=overwrite))
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def new_text_file(path: str | Path, *, overwrite: bool = False) -> Iterator[TextIO]:
    """As ``new_file``, opened for UTF-8 text."""
    with (
        new_file(path, overwrite=overwrite) as temporary,
        temporary.open("x", encoding="utf-8", newline="\n") as file,
    ):
        yield file


@contextmanager
def new_folder(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a folder to fill, which is renamed to ``path`` when the block ends well.

    With ``overwrite``, a folder that stands there is moved aside until the new one has its name.

    Raises:
        ArgumentError: as ``refuse_existing``.
    """
    place = refuse_existing(path, overwrite=overwrite, folder=True)
    temporary = _sibling(place)
    aside = temporary.with_suffix(".old")
    temporary.mkdir()
    try:
        yield temporary
        refuse_existing(path, overwrite=overwrite, folder=True)
        if place.exists():
            place.replace(aside)
        temporary.replace(place)
    except BaseException:
        if aside.exists() and not place.exists():
            aside.replace(place)
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if aside.is_dir():
        shutil.rmtree(aside)
    else:
        aside.unlink(missing_ok=True)


def finite(value: Any) -> Any:
    """Return the same value with ``None`` for NaN and infinities, which JSON has no words for."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _sibling(path: Path) -> Path:
    """Return an unused hidden name beside ``path``, as a rename needs one file system."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
