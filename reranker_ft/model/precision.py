"""Half precision: which type a device computes in, and a model that scores or trains in it."""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reranker_ft.errors import ArgumentError
from reranker_ft.model.forward import keep_bf16_layers

_CPU_INFO = Path("/proc/cpuinfo")
# As Linux names them: units for matrices; instructions for vectors, which some processors split
# into slower ones: Intel's and AMD's, then ARM's.
_MATRIX_FLAG = "amx_bf16"
_VECTOR_FLAGS = frozenset({"avx512_bf16", "bf16", "svebf16"})
_WORTH_IT = 0.7
"""Of the time of a product in fp32."""


@cache
def cpu_computes_in_bf16() -> bool:
    """Whether products in bf16 are faster on this processor; False where the system does not say.

    Processors without the instructions convert every number to fp32 first, which takes longer than
    staying in it. Those that have them for vectors alone are asked by a product of 10 ms.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    try:
        known = _CPU_INFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    lines = re.findall(r"^(?:flags|Features)\s*:(.*)$", known, re.MULTILINE)
    flags = set(lines[0].split()) if lines else set()
    if _MATRIX_FLAG in flags:
        return True
    return bool(_VECTOR_FLAGS & flags) and _is_faster_in_bf16()


def _is_faster_in_bf16() -> bool:
    """Time a product as large as those of a small cross-encoder, the best of several times."""

    def seconds(dtype: torch.dtype) -> float:
        left, right = torch.ones(1024, 384, dtype=dtype), torch.ones(1536, 384, dtype=dtype)
        taken = []
        for _ in range(6):
            started = time.perf_counter()
            nn.functional.linear(left, right)
            taken.append(time.perf_counter() - started)
        return min(taken)

    return seconds(torch.bfloat16) < _WORTH_IT * seconds(torch.float32)


def dtype_asked_for(
    use_fp16: bool, use_bf16: bool, devices: Sequence[torch.device], doing: str
) -> torch.dtype:
    """Return the type to compute in: on a CPU both arguments mean bf16, where that is faster.

    Args:
        doing: For the warning of a CPU that stays in fp32, to the caller's caller.

    Raises:
        ArgumentError: Both are set.
    """
    if use_fp16 and use_bf16:
        raise ArgumentError(
            "use_fp16 and use_bf16 are both set - a model has one dtype - leave out one of them"
        )
    if not (use_fp16 or use_bf16):
        return torch.float32
    if any(device.type == "cpu" for device in devices):
        if cpu_computes_in_bf16():
            return torch.bfloat16
        warnings.warn(f"this processor does not compute in bf16: {doing} in fp32", stacklevel=3)
        return torch.float32
    return torch.float16 if use_fp16 else torch.bfloat16


def in_half_precision(model: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Move a model that scores pairs, so that it computes in a type of 16 bits.

    On a CPU norms, softmax and the head compute in fp32. A BERT-like classifier keeps its fp32
    weights there, beside copies in bf16 of those of its layers: what is changed in the former
    afterwards is not seen by the latter.

    Args:
        model: The fp32 model or one in the type of its checkpoint; changed in place.
        dtype: bf16, or fp16 on a GPU.
    """
    if device.type != "cpu":
        return model.to(device, dtype)
    model.to(device, torch.float32)
    if keep_bf16_layers(model):
        return model
    model.to(dtype)
    for head in _heads(model):
        # Scores in bf16 would have three digits, and many ties.
        head.float().register_forward_pre_hook(_widened)
    return model


def _heads(model: nn.Module) -> list[nn.Linear]:
    """Return the layers that give one number."""
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return [linear for linear in linears if linear.out_features == 1]


def _widened(_: nn.Module, states: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(each.float() if isinstance(each, Tensor) else each for each in states)


@contextmanager
def products_in_bf16(model: nn.Module) -> Iterator[None]:
    """Inside, forwards of a training step on a CPU multiply in bf16, by fp32 weights.

    Norms, the softmax of attention, residuals and the head stay in fp32. Autocast keeps a weight
    that it has cast until it ends, so one context around all micro-batches of a step casts each
    weight once.
    """
    heads = _heads(model)
    for head in heads:
        head.forward = partial(_in_fp32, head.forward)  # type: ignore[method-assign]
    try:
        with torch.autocast("cpu", torch.bfloat16):
            yield
    finally:
        for head in heads:
            del head.forward


def _in_fp32(forward: Callable[[Tensor], Tensor], states: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return forward(states.float())
