"""Tensors of a ``torch.save`` file: names and shapes, with the data left in the file."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cocktail.errors import CheckpointError
from cocktail.tensors.dtypes import code_of
from cocktail.tensors.headers import is_text
from cocktail.tensors.info import TensorInfo

if TYPE_CHECKING:
    import torch


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
            f"{path}: holds a {type(state).__name__} - a checkpoint is a map of names to tensors "
            "- save the model's state_dict()"
        )
    tensors: dict[str, TensorInfo] = {}
    aliases: dict[str, str] = {}
    seen: dict[tuple[object, ...], str] = {}
    for name, value in state.items():
        tensor = _plain(path, name, value)
        info = TensorInfo(
            name, _code(path, name, tensor), tuple(tensor.shape), path, 0, mapped=tensor
        )
        memory = (tensor.data_ptr(), info.shape, tensor.stride(), info.dtype)
        if info.numel and memory in seen:
            aliases[name] = seen[memory]
        else:
            seen[memory] = name
            tensors[name] = info
    return PickledTensors(tensors, aliases)


def _load(path: Path) -> Any:
    import torch  # noqa: PLC0415 - only pickled checkpoints need it this early

    is_zip = _starts_as_zip(path)
    if is_zip and not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path}: is cut off - copy or download it again")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # the unpickler raises a dozen unrelated types on damaged input
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise CheckpointError(
            f"{path}: cannot be read as tensors ({reason[:160]}) - pickled weights are loaded with "
            "weights_only=True, which runs no code - save the model as safetensors instead"
        ) from None


def _starts_as_zip(path: Path) -> bool:
    """Files of torch < 1.6 are bare pickles, which cannot be mapped.

    Raises:
        CheckpointError: the file is empty or cannot be read.
    """
    try:
        with path.open("rb") as file:
            first = file.read(4)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    if not first:
        raise CheckpointError(f"{path}: is empty - copy or download it again")
    return first == b"PK\x03\x04"


def _plain(path: Path, name: object, value: object) -> torch.Tensor:
    """The tensor without its training state."""
    import torch  # noqa: PLC0415

    if not isinstance(name, str) or not isinstance(value, torch.Tensor):
        raise CheckpointError(
            f"{path}: entry {name!r} is a {type(value).__name__} - a checkpoint maps names to "
            "tensors - save the model's state_dict(), not the model or the trainer's state"
        )
    if value.layout != torch.strided or value.is_meta or value.is_quantized:
        kind = "quantised" if value.is_quantized else "without data" if value.is_meta else "sparse"
        raise CheckpointError(
            f"{path}: tensor {name!r} is {kind} - only tensors that hold all their "
            "elements can be averaged - save it as a dense one"
        )
    if not is_text(name):
        raise CheckpointError(
            f"{path}: the name of tensor {name!r} is not text - files hold names in UTF-8 - rename "
            "it and save again"
        )
    return value.detach()


def _code(path: Path, name: str, tensor: torch.Tensor) -> str:
    try:
        return code_of(tensor.dtype)
    except KeyError:
        raise CheckpointError(
            f"{path}: tensor {name!r} has dtype {tensor.dtype} - safetensors has no such type - "
            "convert it first"
        ) from None
