"""Describe a checkpoint from its headers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cocktail.checkpoint.detect import kind_of, scoring
from cocktail.checkpoint.kinds import LANGUAGE_RERANKER, architecture
from cocktail.checkpoint.model import MAIN, Checkpoint, tensor_key
from cocktail.checkpoint.pooling import pooling_mode
from cocktail.checkpoint.resolve import resolve
from cocktail.checkpoint.ties import is_tied
from cocktail.checkpoint.vocabulary import read_vocabulary
from cocktail.system.notebook import html_table
from cocktail.tensors.dtypes import torch_name


@dataclass(frozen=True)
class Inspection:
    """What a checkpoint is, from its headers and configs.

    Attributes:
        model: as it was named; ``folder`` is where it lies, ``commit`` that of the Hub.
        kind: such as ``reranker``; ``None`` where no kind is known.
        scoring: how a reranker that is a language model scores.
        architecture: the class that it was saved from.
        parameters, bytes: of all tensors.
        dtypes: parameters in each.
        files: that hold the tensors; ``parts`` are modules in folders of their own.
        tied: whether input and output embeddings are one tensor, where the config says.
        tokens: of its vocabulary.
        pooling: of an encoder.
        tensors: ``name``, ``dtype``, ``shape`` and ``bytes`` of each.
    """

    model: str
    folder: str
    commit: str | None
    kind: str | None
    scoring: Any
    architecture: str
    parameters: int
    bytes: int
    dtypes: dict[str, int]
    files: list[str]
    parts: list[str]
    tied: bool | None
    tokens: int | None
    pooling: str | None
    tensors: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def _repr_html_(self) -> str:
        shown = {key: value for key, value in self.to_dict().items() if key != "tensors"}
        return html_table([("model", shown.pop("model")), *shown.items()])


def inspect_model(model: str | Path) -> Inspection:
    """Look into a checkpoint without loading it; what ``cocktail inspect`` does.

    Args:
        model: a local folder, a Hub id ``org/name[@revision]`` or a LoRA adapter.

    Raises:
        CheckpointError: it cannot be read as it stands.
    """
    return Inspection(**inspect(resolve(str(model))))


def inspect(checkpoint: Checkpoint) -> dict[str, Any]:
    """What a checkpoint is, from its headers and configs.

    Returns:
        ``model``, ``folder``, ``commit``, ``kind``, ``scoring`` (of a reranker that is a
        language model), ``architecture``, ``parameters``, ``bytes``,
        ``dtypes`` (parameters in each), ``files``, ``parts``, ``tied``, ``tokens``, ``pooling``
        and ``tensors`` (name, dtype, shape, bytes of each).
    """
    kind = kind_of(checkpoint)
    dtypes: dict[str, int] = {}
    for _, info in checkpoint:
        dtypes[torch_name(info.dtype)] = dtypes.get(torch_name(info.dtype), 0) + info.numel
    stored = [
        i for _, info in checkpoint for i in (info, *(info.delta.stored if info.delta else ()))
    ]
    files = sorted({info.file.name for info in stored})
    return {
        "model": checkpoint.reference,
        "folder": ", ".join(str(folder) for folder in checkpoint.origins.values()),
        "commit": checkpoint.commit,
        "kind": kind.name if kind else None,
        "scoring": scoring(checkpoint) if kind is LANGUAGE_RERANKER else None,
        "architecture": architecture(checkpoint.config),
        "parameters": sum(info.numel for _, info in checkpoint),
        "bytes": sum(info.nbytes for _, info in checkpoint),
        "dtypes": dtypes,
        "files": files,
        "parts": [path for path in checkpoint.parts if path != MAIN],
        "tied": is_tied(checkpoint.config),
        "tokens": len(read_vocabulary(checkpoint.main_folder)) or None,
        "pooling": pooling_mode(checkpoint),
        "tensors": [
            {
                "name": tensor_key(path, name),
                "dtype": torch_name(info.dtype),
                "shape": list(info.shape),
                "bytes": info.nbytes,
            }
            for path, part in checkpoint.parts.items()
            for name, info in part.tensors.items()
        ],
    }
