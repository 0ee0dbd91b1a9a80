"""The modules that make a transformer a sentence-transformers model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cocktail.checkpoint.whole import Checkpoint, read_json

_TRANSFORMER = "sentence_transformers.models.Transformer"
_POOLING = "sentence_transformers.models.Pooling"


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


def pooling_problems(ingredients: Sequence[Checkpoint], pooling: str | None) -> list[str]:
    """Say whose pooling contradicts the first ingredient's, or the one asked for."""
    modes = [pooling_mode(checkpoint) for checkpoint in ingredients]
    problems = []
    if pooling is not None and modes[0] not in (None, pooling):
        problems.append(
            f"{ingredients[0].reference} pools by {modes[0]}, pooling {pooling!r} was asked "
            "for - pooling is made only where the first ingredient has none - leave it out"
        )
    for checkpoint, mode in zip(ingredients, modes, strict=True):
        if mode is not None and modes[0] is not None and mode != modes[0]:
            problems.append(
                f"{checkpoint.reference} pools by {mode}, {ingredients[0].reference} by {modes[0]} "
                "- embeddings that are pooled differently have no average - mix models that pool "
                "alike"
            )
    return problems


def write_modules(folder: Path, pooling: str, width: int) -> None:
    """Make a transformers folder a sentence-transformers one.

    Args:
        folder: holds the model's config and weights.
        pooling: ``cls``, ``mean``, ``max`` or ``lasttoken``.
        width: size of the token embeddings.
    """
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": _TRANSFORMER},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": _POOLING},
    ]
    keys = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens"}
    config: dict[str, Any] = {"word_embedding_dimension": width}
    for mode in ("cls", "mean", "max", "lasttoken"):
        config[f"pooling_mode_{keys.get(mode, mode)}"] = mode == pooling
    (folder / "1_Pooling").mkdir()
    for path, value in (("modules.json", modules), ("1_Pooling/config.json", config)):
        (folder / path).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
