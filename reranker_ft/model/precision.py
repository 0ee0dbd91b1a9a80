"""Half precision for scoring: which type a device computes in, and a model that runs in it."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reranker_ft.model.forward import keep_bf16_layers

_CPU_INFO = Path("/proc/cpuinfo")
# As Linux names them: Intel's and AMD's matrix and vector products, then ARM's.
_FLAGS = frozenset({"amx_bf16", "avx512_bf16", "bf16", "svebf16"})


@cache
def cpu_computes_in_bf16() -> bool:
    """Whether the processor multiplies bf16 itself; False too where the system does not say.

    Others convert every number to fp32 first, which takes longer than staying in it.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    try:
        known = _CPU_INFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    lines = re.findall(r"^(?:flags|Features)\s*:(.*)$", known, re.MULTILINE)
    return any(_FLAGS & set(line.split()) for line in lines[:1])


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
    for head in model.modules():
        if isinstance(head, nn.Linear) and head.out_features == 1:
            # Scores in bf16 would have three digits, and many ties.
            head.float().register_forward_pre_hook(_widened)
    return model


def _widened(_: nn.Module, states: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(each.float() if isinstance(each, Tensor) else each for each in states)
