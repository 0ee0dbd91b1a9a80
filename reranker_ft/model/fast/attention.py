"""Attention on a GPU without cuDNN, which prepares for every new shape."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch.backends import cuda


@contextmanager
def attention_without_plans() -> Iterator[None]:
    """Inside, scaled dot product attention takes torch's own kernels and never cuDNN's.

    In half precision torch prefers cuDNN's on recent GPUs. cuDNN builds a plan for every shape that
    it meets first, a tenth of a second for forward and backward, and batches padded to their
    longest text go on bringing new shapes.
    """
    if not cuda.cudnn_sdp_enabled():  # type: ignore[no-untyped-call]
        yield
        return
    cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        cuda.enable_cudnn_sdp(True)
