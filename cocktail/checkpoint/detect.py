"""Tell a checkpoint's kind from everything in its folder, and how a reranker scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cocktail.checkpoint.folder import read_json
from cocktail.checkpoint.kinds import (
    KINDS,
    LANGUAGE_RERANKER,
    STACK_RERANKER,
    Kind,
    architecture,
    detect_kind,
    kind_named,
)
from cocktail.checkpoint.model import Checkpoint

# Parts of the names under which plain language models are published as rerankers.
_PUBLISHED = (
    "bge-reranker-v2-gemma", "bge-reranker-v2-minicpm", "qwen3-reranker", "mxbai-rerank-base-v2",
    "mxbai-rerank-large-v2",
)  # fmt: skip
_RECORD = "reranker"
"""Where ``reranker_ft`` records in ``config.json`` how a language model scores."""


def kind_of(checkpoint: Checkpoint, name: str | None = None) -> Kind | None:
    """The kind that was named, or else the one that the checkpoint's files show.

    Args:
        name: a ``model_type``.

    Returns:
        ``None`` where no name is given and the files show none.

    Raises:
        PlanError: there is no kind of that name.
        CheckpointError: a file that would show it is damaged.
    """
    is_language_model = architecture(checkpoint.config).endswith(LANGUAGE_RERANKER.architectures)
    if name is not None:
        kind = kind_named(name)
        if kind.name != "reranker":
            return kind
        return LANGUAGE_RERANKER if is_language_model else _with_modules(checkpoint) or kind
    if is_language_model and scoring(checkpoint) is not None:
        return LANGUAGE_RERANKER
    has_modules = (checkpoint.folder / "modules.json").is_file()
    return _with_modules(checkpoint) or detect_kind(checkpoint.config, has_modules=has_modules)


def _with_modules(checkpoint: Checkpoint) -> Kind | None:
    """The kind of a cross-encoder of sentence-transformers; ``None`` if it is not one."""
    if _sentence_transformers(checkpoint.folder).get("model_type") != "CrossEncoder":
        return None
    has_head = architecture(checkpoint.config).endswith(KINDS["reranker"].architectures)
    return KINDS["reranker"] if has_head or not _modules(checkpoint.folder) else STACK_RERANKER


def scoring(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """How a reranker that is a language model scores.

    Returns:
        ``by`` (``answer`` or ``modules``), ``yes_token_id``, ``no_token_id`` and ``prompt``, each
        ``None`` where the files do not say; ``None`` if nothing says that it is a reranker.

    Raises:
        CheckpointError: a file that would show it is damaged.
    """
    record = checkpoint.config.get(_RECORD)
    if isinstance(record, dict):
        prompt = record.get("prompt") or {}
        return {
            "by": "answer",
            "yes_token_id": record.get("yes_token_id"),
            "no_token_id": record.get("no_token_id"),
            "prompt": _written(prompt),
        }
    for module in _modules(checkpoint.folder):
        if str(module.get("type", "")).endswith(".LogitScore"):
            config = read_json(checkpoint.folder / str(module["path"]) / "config.json")
            return {
                "by": "modules",
                "yes_token_id": config.get("true_token_id"),
                "no_token_id": config.get("false_token_id"),
                "prompt": None,
            }
    names = (checkpoint.reference, checkpoint.folder.name, checkpoint.config.get("_name_or_path"))
    for part in _PUBLISHED:
        if any(part in str(name).lower() for name in names):
            return {"by": "answer", "yes_token_id": None, "no_token_id": None, "prompt": part}
    return None


def _written(prompt: dict[str, Any]) -> str:
    texts = [
        *prompt.get("before", ()), prompt.get("query", ""), "{query}", *prompt.get("between", ()),
        prompt.get("passage", ""), "{passage}", *prompt.get("after", ()),
    ]  # fmt: skip
    return "".join(map(str, texts)).replace("{instruction}", str(prompt.get("instruction") or ""))


def _modules(folder: Path) -> list[dict[str, Any]]:
    path = folder / "modules.json"
    if not path.is_file():
        return []
    modules: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return modules


def _sentence_transformers(folder: Path) -> dict[str, Any]:
    path = folder / "config_sentence_transformers.json"
    return read_json(path) if path.is_file() else {}
