"""Read a model card: what it says about the model's licence and base."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from cocktail.checkpoint.model import Checkpoint

_FRONT_MATTER = re.compile(r"\A---\s*\n(?P<yaml>.*?)\n---\s*(\n|\Z)", re.DOTALL)


def front_matter(folder: Path) -> dict[str, Any]:
    """The YAML map at the top of a folder's ``README.md``; empty if there is none."""
    try:
        match = _FRONT_MATTER.match((folder / "README.md").read_text(encoding="utf-8"))
        value = yaml.safe_load(match["yaml"]) if match else {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def licences(checkpoint: Checkpoint) -> dict[str, list[str]]:
    """The licences that a checkpoint's cards name, by the reference of the model that has the card.

    An adapter has both its own and its base's.
    """
    found = {}
    for reference, folder in checkpoint.origins.items():
        front = front_matter(folder)
        value = front.get("license")
        names = [str(name) for name in (value if isinstance(value, list) else [value]) if name]
        if names == ["other"] and front.get("license_name"):
            names = [str(front["license_name"])]
        if names:
            found[reference] = names
    return found


def licence_note(found: dict[str, list[str]]) -> str | None:
    """One line if the models' licences differ; all of them bind whoever uses the mix."""
    if len({tuple(sorted(names)) for names in found.values()}) < 2:
        return None
    each = ", ".join(f"{' and '.join(names)} ({whose})" for whose, names in found.items())
    return f"licences differ: {each}; the model card names them all, and the terms of each apply"
