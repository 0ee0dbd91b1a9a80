"""Describe a checkpoint from its headers."""

from __future__ import annotations

from typing import Any

from cocktail.checkpoint.detect import kind_of, scoring
from cocktail.checkpoint.kinds import LANGUAGE_RERANKER, architecture
from cocktail.checkpoint.model import MAIN, Checkpoint, tensor_key
from cocktail.checkpoint.pooling import pooling_mode
from cocktail.checkpoint.ties import is_tied
from cocktail.checkpoint.vocabulary import read_vocabulary
from cocktail.tensors.dtypes import torch_name


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
