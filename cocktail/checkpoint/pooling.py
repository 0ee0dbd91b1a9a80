"""The modules that make a transformer a sentence-transformers model."""

from __future__ import annotations

import json
from typing import Any

from cocktail.checkpoint.folder import read_json
from cocktail.checkpoint.model import Checkpoint


def pooling_mode(checkpoint: Checkpoint) -> str | None:
    """How the checkpoint's own modules pool: ``cls``, ``mean``, ``max``, ``lasttoken``, ...

    Returns:
        Several modes joined by ``+``; ``None`` if it has no pooling module.

    Raises:
        CheckpointError: the pooling module's config is missing or damaged.
    """
    path = checkpoint.folder / "modules.json"
    if not path.is_file():
        return None
    for module in json.loads(path.read_text(encoding="utf-8")):
        if str(module.get("type", "")).endswith("Pooling"):
            return _mode(read_json(checkpoint.folder / module["path"] / "config.json"))
    return None


def _mode(config: dict[str, Any]) -> str:
    if isinstance(config.get("pooling_mode"), str):
        return str(config["pooling_mode"])
    names = {"cls_token": "cls", "mean_tokens": "mean", "max_tokens": "max"}
    active = [
        key.removeprefix("pooling_mode_")
        for key, value in config.items()
        if key.startswith("pooling_mode_") and value is True
    ]
    return "+".join(sorted(names.get(key, key) for key in active))
