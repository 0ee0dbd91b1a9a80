"""Tensors of a ``torch.save`` file: its names and shapes, with the data left in the file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cocktail.dtypes import code_of
from cocktail.errors import CheckpointError
from cocktail.headers import TensorInfo


@dataclass(frozen=True)
class PickledTensors:
    """What a pickled state dict holds.

    Attributes:
        tensors: by name; a tensor that shares its memory with an earlier one is left out.
        aliases: the names left out, each with the name it shares its memory with.
    """

    tensors: dict[str, TensorInfo]
    aliases: dict[str, str]


def read_pickled(path: Path) -> PickledTensors:
    """Map a pickled state dict into memory, with ``weights_only=True``.

    Raises:
        CheckpointError: the file is damaged, holds anything but tensors, or a tensor of a type
            that safetensors has no name for.
    """
    state = _load(path)
    if not isinstance(state, dict):
        raise CheckpointError(
            f"{path}: holds a {type(state).__name__} - a checkpoint is a map from names to tensors "
            "- save the model's state_dict()"
        )
    tensors: dict[str, TensorInfo] = {}
    aliases: dict[str, str] = {}
    seen: dict[tuple[object, ...], str] = {}
    for name, tensor in state.items():
        info = _describe(path, name, tensor)
        memory = (tensor.data_ptr(), info.shape, tensor.stride(), info.dtype)
        if info.numel and memory in seen:
            aliases[name] = seen[memory]
        else:
            seen[memory] = name
            tensors[name] = info
    return PickledTensors(tensors, aliases)


def _load(path: Path) -> Any:
    import torch  # noqa: PLC0415 - only pickled checkpoints need it this early

    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except Exception as error:  # the unpickler raises a dozen unrelated types on damaged input
        reason = str(error).strip().split("\n")[0]
        raise CheckpointError(
            f"{path}: cannot be read as tensors ({reason[:160]}) - pickled weights are loaded with "
            "weights_only=True, which runs no code - save the model as safetensors instead"
        ) from None


def _is_zip(path: Path) -> bool:
    """Files of torch < 1.6 are bare pickles, which cannot be mapped."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _describe(path: Path, name: object, tensor: object) -> TensorInfo:
    import torch  # noqa: PLC0415

    if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
        raise CheckpointError(
            f"{path}: entry {name!r} is a {type(tensor).__name__} - a checkpoint maps names to "
            "tensors - save the model's state_dict(), not the model or the trainer's state"
        )
    try:
        dtype = code_of(tensor.dtype)
    except KeyError:
        raise CheckpointError(
            f"{path}: tensor {name!r} has dtype {tensor.dtype} - it has no safetensors name - "
            "convert it first"
        ) from None
    return TensorInfo(name, dtype, tuple(tensor.shape), path, 0, mapped=tensor)
