"""Write the modules that make a transformer a sentence-transformers model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cocktail.errors import CheckpointError
from cocktail.plan.plan import Plan

_TRANSFORMER = "sentence_transformers.models.Transformer"


_POOLING = "sentence_transformers.models.Pooling"


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


def token_width(plan: Plan) -> int:
    """The size of the token embeddings, from the config."""
    for key in ("hidden_size", "d_model", "n_embd", "dim"):
        value = plan.donor.config.get(key)
        if isinstance(value, int):
            return value
    raise CheckpointError(
        f"{plan.donor.main_folder}/config.json: names no hidden_size - pooling needs the width of "
        "the embeddings - add it, or leave --pooling out"
    )
