"""Where a mix may be written: what is there already, and whether it fits."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from cocktail.checkpoint.model import Checkpoint
from cocktail.checkpoint.weight_files import WRITTEN_PATTERNS
from cocktail.errors import OutputError
from cocktail.write.provenance import PROVENANCE_FILE

_SPARE_BYTES = 16_000_000  # config, tokenizer, card and the file system's own use


def output_folder(path: str | Path) -> Path:
    """The path that a user named, with ``~`` expanded.

    Raises:
        OutputError: it is not a path.
    """
    try:
        return Path(path).expanduser()
    except (RuntimeError, TypeError) as error:
        raise OutputError(
            f"the output {str(path)!r} is not a path here ({error}) - choose another output"
        ) from None


def output_problems(
    output: Path, ingredients: Mapping[str, Path], needed: int, *, overwrite: bool
) -> list[str]:
    """Say why ``output`` cannot take a mix of ``needed`` bytes from these folders (by name).

    An existing folder is replaced only with ``overwrite``, and only if it holds a model.
    """
    unusable = _unusable(output)
    if unusable is not None:
        return [
            f"the output {str(output)!r} is not a path here ({unusable}) - choose another output"
        ]
    problems = []
    place = Path(os.path.realpath(output))
    for name, folder in ingredients.items():
        source = Path(os.path.realpath(folder))
        if place == source or place in source.parents or source in place.parents:
            relation = (
                "is" if place == source else "contains" if place in source.parents else "lies in"
            )
            problems.append(
                f"the output {output} {relation} the ingredient {name} - ingredients are never "
                "written to - choose another output"
            )
    standing = standing_problem(output, overwrite=overwrite)
    if standing is not None:
        problems.append(standing)
    return problems + _place_problems(place, needed)


def _unusable(output: Path) -> str | None:
    """The system's error for a path that cannot be examined, or ``None``."""
    try:
        output.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return error.strerror
    except ValueError as error:  # a null byte
        return str(error)
    return None


def standing_problem(output: Path, *, overwrite: bool) -> str | None:
    """Say why what exists at ``output`` cannot be replaced."""
    if output.exists() and not output.is_dir():
        return f"the output {output} is a file - it must be a folder - choose another"
    if not output.exists() or not any(output.iterdir()):
        return None
    if not overwrite:
        return (
            f"the output {output} exists and is not empty - it is replaced only on request - "
            "choose another output, or pass --overwrite (overwrite=True)"
        )
    if _holds_model(output):
        return None
    return (
        f"the output {output} holds files but not a model - only a model is overwritten - choose "
        "another output, or empty the folder yourself"
    )


def _holds_model(folder: Path) -> bool:
    """Whether a folder has a config with weights beside it or in a module's folder, or a record."""
    if (folder / "config.json").is_file():
        marks: tuple[str, ...] = (*WRITTEN_PATTERNS, PROVENANCE_FILE)
    elif (folder / "modules.json").is_file():
        marks = (*(f"*/{name}" for name in WRITTEN_PATTERNS), PROVENANCE_FILE)
    else:
        return False
    return any(any(folder.glob(mark)) for mark in marks)


def linked_folders(checkpoint: Checkpoint) -> dict[str, Path]:
    """The folders that links among a checkpoint's weights lead to, by a name for messages."""
    return {
        f"{checkpoint.reference} ({info.file.name} links there)": info.file.resolve().parent
        for _, info in checkpoint
        if info.file.is_symlink()
    }


def _place_problems(place: Path, needed: int) -> list[str]:
    """Say why nothing can be made at ``place``."""
    parent = next((folder for folder in place.parents if folder.exists()), place)
    if not parent.is_dir():
        return [f"the output's folder {parent} is a file - choose another output"]
    if not os.access(parent, os.W_OK):
        return [f"the output's folder {parent} is not writable - choose another output"]
    free = shutil.disk_usage(parent).free
    needed += _SPARE_BYTES
    if free < needed:
        return [
            f"the mix takes {needed / 1e6:,.0f} MB while it is written, but {parent} has only "
            f"{free / 1e6:,.0f} MB free - any old output is kept until the new one is complete - "
            "free space, or choose another disk"
        ]
    return []
