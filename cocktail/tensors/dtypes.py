"""Tensor types as safetensors spells them, known here without importing torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cocktail.errors import RecipeError

if TYPE_CHECKING:
    import torch


ITEM_SIZE = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2,
    "BF16": 2, "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip
"""Bytes per element."""

FLOATING = frozenset({"F16", "BF16", "F32", "F64"})
"""The types that can be mixed."""

_TORCH_NAME = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "U16": "uint16", "I16": "int16", "F16": "float16",
    "BF16": "bfloat16", "U32": "uint32", "I32": "int32", "F32": "float32", "U64": "uint64",
    "I64": "int64", "F64": "float64",
}  # fmt: skip
_FROM_TORCH_NAME = {name: code for code, name in _TORCH_NAME.items()}
_SHORT_NAMES = {"fp16": "F16", "half": "F16", "bf16": "BF16", "fp32": "F32", "float": "F32"}


def torch_dtype(code: str) -> torch.dtype:
    """The torch type of a safetensors code: ``"BF16"`` gives ``torch.bfloat16``."""
    import torch  # noqa: PLC0415 - seconds to import; headers and plans do without it

    dtype: torch.dtype = getattr(torch, _TORCH_NAME[code])
    return dtype


def torch_name(code: str) -> str:
    """The name that configs use: ``"BF16"`` gives ``"bfloat16"``."""
    return _TORCH_NAME[code]


def as_tensor(data: Bytes, code: str) -> torch.Tensor:
    """The elements of type ``code`` whose bytes these are, shape (n,); shares the memory."""
    import torch  # noqa: PLC0415

    return torch.from_numpy(data).view(torch_dtype(code))


def as_bytes(block: torch.Tensor) -> Bytes:
    """The bytes of a contiguous tensor of shape (n,); shares its memory."""
    import torch  # noqa: PLC0415

    data: Bytes = block.view(torch.uint8).numpy()
    return data


def code_of(dtype: torch.dtype) -> str:
    """The safetensors code of a torch type; a KeyError where safetensors has none."""
    return _FROM_TORCH_NAME[str(dtype).removeprefix("torch.")]


def parse_dtype(value: str | torch.dtype | None) -> str | None:
    """Read an output type: ``None``, a torch dtype, or a name such as ``bfloat16`` or ``bf16``.

    Returns:
        The safetensors code, or ``None`` for "as the ingredients are".

    Raises:
        RecipeError: the name is not one of the floating-point types that can be written.
    """
    if value is None:
        return None
    name = str(value).removeprefix("torch.").lower()
    code = _SHORT_NAMES.get(name) or _FROM_TORCH_NAME.get(name)
    if code not in FLOATING:
        raise RecipeError(
            f"dtype is {str(value)!r} - it must be float32, bfloat16, float16 or float64 - name "
            "one of these, or leave it out to keep the ingredients' own"
        )
    return code


def widest(codes: set[str]) -> str:
    """The smallest floating type that holds every one of ``codes`` (BF16 with F16 gives F32)."""
    if len(codes) == 1:
        return next(iter(codes))
    return "F64" if "F64" in codes else "F32"


Bytes = NDArray[np.uint8]


Floats = NDArray[np.float32]
