"""Find the folder that a reference names, and read the small files in it."""

from __future__ import annotations

import json
import os
from pathlib import Path, PurePosixPath
from typing import Any

from cocktail.checkpoint.hub import fetch, parse_identifier
from cocktail.errors import CheckpointError


def locate(text: str) -> tuple[Path, str | None]:
    """Find a local folder, or fetch a model from the Hub.

    Returns:
        The folder, and the commit if it comes from the Hub.

    Raises:
        CheckpointError: there is no such folder or model, or no access to it.
    """
    local = local_folder(text)
    if local is not None:
        return local, None
    identifier = parse_identifier(text)
    is_file = os.path.exists(os.path.expanduser(text))  # noqa: PTH110, PTH111
    if identifier is None or is_file:
        found = "is a file" if is_file else "does not exist"
        raise CheckpointError(
            f"{text}: {found} - a model is a folder with config.json and weights, or a Hub id "
            "org/name[@revision] - check the path"
        )
    folder = fetch(*identifier)
    return folder, folder.name


def local_folder(text: str) -> Path | None:
    """The folder of that name (``~`` is home), or ``None``."""
    path = os.path.expanduser(text)  # noqa: PTH111 - pathlib raises where there is no such home
    return Path(path) if os.path.isdir(path) else None  # noqa: PTH112 - and for names too long


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: the file is missing, not UTF-8 JSON, or not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path.parent}: has no {path.name} - a model folder holds one - save the model with "
            "save_pretrained()"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is not valid JSON ({error}) - repair the file") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: is not a JSON object - repair the file")
    return value


def has_config(folder: Path) -> bool:
    """Whether a folder's first module is a transformer, which has a ``config.json``.

    Static embeddings of sentence-transformers have none.
    """
    path = folder / "modules.json"
    if not path.is_file() or (folder / module_folders(folder)[0] / "config.json").is_file():
        return True
    first = json.loads(path.read_text(encoding="utf-8"))[0]
    return not str(first.get("type", "")).endswith("StaticEmbedding")


def module_folders(folder: Path) -> list[str]:
    """The folders of a sentence-transformers model, its transformer first; ``[""]`` for others."""
    path = folder / "modules.json"
    if not path.is_file():
        return [""]
    try:
        modules = json.loads(path.read_text(encoding="utf-8"))
        folders = [module["path"] for module in modules]
        if not all(isinstance(name, str) for name in folders):
            raise TypeError("a path is not text")
    except (ValueError, KeyError, TypeError, RecursionError, OSError) as error:
        raise CheckpointError(
            f"{path}: cannot be understood ({type(error).__name__}: {error}) - it must list "
            "the modules of a sentence-transformers model - repair or remove it"
        ) from None
    for name in folders:
        if not _stays_inside(name):
            raise CheckpointError(
                f"{path}: names the folder {name!r} - modules must lie inside the model's folder - "
                "repair the file"
            )
    if not folders:
        raise CheckpointError(f"{path}: lists no module - repair or remove it")
    return folders


def _stays_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "\0" not in name
