"""Fold a scale and an offset of the scores into the head of a stored model, in a copy of it.

``scale * (w . h + b) + offset`` is the head ``(scale * w) . h + (scale * b + offset)``: two tensors
change, in place in the copied files, and every tool that loads the model gives the new scores.
"""

from __future__ import annotations

import json
import re
import shutil
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reranker_ft.errors import ModelError

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
# Of a training run; no part of the model that it wrote.
_LEFT_OUT = re.compile(r"checkpoint-\d+|fine-tuned|\.git")
# The same weights in other formats, which would still give the scores as they were.
_OTHER_FORMATS = re.compile(
    r"(pytorch_model|tf_model|flax_model)\b.*|.*\.(onnx|onnx_data|gguf|h5|msgpack|ot)"
)
_OTHER_FOLDERS = re.compile(r"onnx|openvino")


@dataclass(frozen=True)
class Stored:
    """Where the bytes of a tensor are.

    Attributes:
        file: Relative to the model's folder.
        start: Of its first byte in the file.
    """

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int

    def read(self, folder: Path) -> Tensor:
        """Return the tensor, in its dtype."""
        count = torch.Size(self.shape).numel() * self.dtype.itemsize
        with (folder / self.file).open("rb") as file:
            file.seek(self.start)
            data = bytearray(file.read(count))
        return torch.frombuffer(data, dtype=self.dtype).reshape(self.shape)

    def write(self, folder: Path, values: Tensor) -> None:
        """Overwrite it with values of the same shape, rounded to its dtype."""
        data = values.to(self.dtype).contiguous().view(torch.uint8).numpy().tobytes()
        with (folder / self.file).open("r+b") as file:
            file.seek(self.start)
            file.write(data)


@dataclass(frozen=True)
class Head:
    """The last layer of a reranker: one logit."""

    weight: Stored
    bias: Stored

    def fold(self, folder: Path, scale: float, offset: float) -> None:
        """Change the head in ``folder``, so that it gives ``scale * score + offset``."""
        weight, bias = (part.read(folder).double() for part in (self.weight, self.bias))
        self.weight.write(folder, scale * weight)
        self.bias.write(folder, scale * bias + offset)


def find_head(folder: Path) -> Head:
    """Find the head among the headers of a model's safetensors files.

    It is the one weight of shape (1, H) that has a bias of shape (1,) beside it.

    Raises:
        ModelError: There is none, or more than one.
    """
    tensors = {
        name: stored
        for file in sorted(folder.rglob("*.safetensors"))
        if _is_copied(file.relative_to(folder))
        for name, stored in _tensors(folder, file.relative_to(folder))
    }
    found = []
    for name, weight in tensors.items():
        bias = tensors.get(name.removesuffix("weight") + "bias")
        if name.endswith("weight") and len(weight.shape) == 2 and weight.shape[0] == 1 and bias:
            found.append(Head(weight, bias))
    if not tensors:
        raise ModelError(
            f"{folder} holds no safetensors - a head is changed there - save the model so first "
            f"(cocktail mix {folder} --weights 1 --output DIR)"
        )
    if len(found) != 1:
        raise ModelError(
            f"{folder} has {len(found) or 'no'} heads of one logit with a bias - scale and offset "
            "go into the one that it has, and a language model, or a classifier made of one, has "
            "none - apply sigmoid(scale * score + offset) where its scores are used (without an "
            "output the two are printed)"
        )
    return found[0]


def copy_model(source: Path, target: Path) -> None:
    """Copy a model's folder but for checkpoints of its training and weights in other formats.

    Args:
        target: An empty folder.
    """

    def left_out(folder: str, names: list[str]) -> list[str]:
        place = Path(folder).relative_to(source)
        return [name for name in names if not _is_copied(place / name)]

    shutil.copytree(source, target, dirs_exist_ok=True, ignore=left_out)


def other_formats(folder: Path) -> list[str]:
    """Return the weights in other formats, which are not copied."""
    return [
        str(path.relative_to(folder))
        for path in sorted(folder.iterdir())
        if (_OTHER_FOLDERS if path.is_dir() else _OTHER_FORMATS).fullmatch(path.name)
    ]


def _is_copied(path: Path) -> bool:
    return not any(
        pattern.fullmatch(part)
        for part in path.parts
        for pattern in (_LEFT_OUT, _OTHER_FORMATS, _OTHER_FOLDERS)
    )


def _tensors(folder: Path, file: Path) -> Iterator[tuple[str, Stored]]:
    """Yield the floating-point tensors of a file, from its header alone."""
    try:
        with (folder / file).open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            header: dict[str, Any] = json.loads(opened.read(length))
    except (struct.error, ValueError, MemoryError, OverflowError) as error:
        raise ModelError(
            f"{folder / file} is not a safetensors file ({error}) - it is damaged - copy it again"
        ) from None
    for name, entry in header.items():
        if name != "__metadata__" and entry["dtype"] in _DTYPES:
            # Names are those of the file's module: two Dense layers both have linear.weight.
            yield (
                f"{file.parent}/{name}",
                Stored(
                    file,
                    _DTYPES[entry["dtype"]],
                    tuple(entry["shape"]),
                    8 + length + entry["data_offsets"][0],
                ),
            )
