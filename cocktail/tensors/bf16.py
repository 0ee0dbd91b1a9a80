"""Weighted sums of fp32, bf16 and fp16 by NumPy alone.

Importing torch takes as long as mixing two models of a billion parameters, so the commonest mix is
made here, without it. NumPy has no bf16: its elements are the upper halves of fp32, widened and
rounded as bits. The results equal torch's, bit for bit.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cocktail.errors import NonFiniteError
from cocktail.tensors.dtypes import ITEM_SIZE, Bytes, Floats, torch_name

SUMMED = frozenset({"F32", "BF16", "F16"})
"""The types that can be summed here."""
PIECE = 1 << 16
"""Elements to process at a time. The megabyte that a sum of so many touches stays in a processor's
L2 cache; with fewer, calls to NumPy take longer than the sums."""
# As fp32 bits: the last number that is still finite when rounded, and the one it rounds to.
_LAST_FINITE = {
    "F32": (0x7F7FFFFF, 0x7F7FFFFF),
    "BF16": (0x7F7F7FFF, 0x7F7F0000),
    "F16": (0x477FEFFF, 0x477FE000),
}


def weigh(raw: Bytes, code: str, weight: float, out: Floats) -> None:
    """weight * x in fp32.

    Args:
        raw: n elements of the type ``code``.
        out: shape (n,); overwritten.
    """
    if code == "F32":
        np.multiply(raw.view(np.float32), np.float32(weight), out=out)
        return
    if code == "F16":
        np.copyto(out, raw.view(np.float16))
    else:
        widen(raw, out)
    np.multiply(out, np.float32(weight), out=out)


def add_weighed(
    raw: Bytes, code: str, weight: float, term: Floats, total: Floats, *, first: bool
) -> None:
    """total + weight * x in fp32, a piece at a time.

    Args:
        raw: n elements of the type ``code``.
        term: at least ``PIECE`` or n long; overwritten.
        total: shape (n,); added to, or overwritten by the ``first`` term.
    """
    size = ITEM_SIZE[code]
    for start in range(0, len(total), PIECE):
        part = total[start : start + PIECE]
        stored = raw[start * size : (start + len(part)) * size]
        if first:
            weigh(stored, code, weight, part)
        else:
            own = term[: len(part)]
            weigh(stored, code, weight, own)
            np.add(part, own, out=part)


def widen(raw: Bytes, out: Floats) -> Floats:
    """n elements of bf16 in fp32, into ``out`` of shape (n,)."""
    bits = out.view(np.uint32)
    np.copyto(bits, raw.view(np.uint16))
    np.left_shift(bits, 16, out=bits)
    return out


def in_fp64(raw: Bytes, code: str) -> NDArray[np.float64]:
    """n elements of the floating type ``code``, shape (n,)."""
    if code == "BF16":
        return widen(raw, np.empty(len(raw) // 2, np.float32)).astype(np.float64)
    own = {"F16": np.float16, "F32": np.float32, "F64": np.float64}[code]
    return raw.view(own).astype(np.float64)


def rounded(block: Floats, code: str, scratch: Floats, out: Bytes, name: str) -> Bytes:
    """fp32 in the type ``code``, checked, a piece at a time.

    Args:
        block: shape (n,).
        scratch: at least ``PIECE`` or n long; overwritten.
        out: at least as many bytes as n elements take.
        name: of the tensor, for the error.

    Returns:
        The first bytes of ``out``, or those of ``block`` where ``code`` is fp32.

    Raises:
        NonFiniteError: an element is not finite, or would not be once it is rounded.
    """
    size = ITEM_SIZE[code]
    for start in range(0, len(block), PIECE):
        part = block[start : start + PIECE]
        require_finite(part, code, name)
        place = out[start * size : (start + len(part)) * size]
        if code == "BF16":
            narrow(part, scratch[: len(part)], place)
        elif code == "F16":
            np.copyto(place.view(np.float16), part, casting="same_kind")
    return block.view(np.uint8) if code == "F32" else out[: len(block) * size]


def narrow(block: Floats, scratch: Floats, out: Bytes) -> Bytes:
    """fp32 rounded to the nearest bf16, ties to even.

    Args:
        block: shape (n,), finite.
        scratch: like ``block``; overwritten.
        out: at least 2 n long.

    Returns:
        The first 2 n bytes of ``out``.
    """
    bits, carry = block.view(np.uint32), scratch.view(np.uint32)
    np.right_shift(bits, 16, out=carry)
    np.bitwise_and(carry, 1, out=carry)
    np.add(carry, 0x7FFF, out=carry)
    np.add(carry, bits, out=carry)
    np.right_shift(carry, 16, out=carry)
    upper = out[: 2 * len(block)]
    np.copyto(upper.view(np.uint16), carry, casting="unsafe")
    return upper


def require_finite(block: Floats, code: str, name: str) -> None:
    """Refuse what is not finite, or would not be once it is rounded to ``code``.

    Raises:
        NonFiniteError: naming the tensor and what was found.
    """
    last, largest = map(float, np.array(_LAST_FINITE[code], np.uint32).view(np.float32))
    # A NaN makes both NaN, and every comparison with it is false; older NumPy warns about it.
    with np.errstate(invalid="ignore"):
        if block.min() >= -last and block.max() <= last:
            return
    strange = block[~np.isfinite(block)]
    worst = float(strange[0]) if len(strange) else None
    raise not_finite(name, worst, largest, f"torch.{torch_name(code)}")


def not_finite(
    name: str, worst: float | None, largest: float, dtype: str, when: str = "after"
) -> NonFiniteError:
    """The error for a tensor that holds ``worst``, or exceeds its type's largest number."""
    found = f"holds {worst}" if worst is not None else f"exceeds {largest:g}, the largest {dtype}"
    return NonFiniteError(
        f"{name} {found} {when} mixing - a mixed model must have finite weights - look at the "
        "ingredients with `cocktail inspect`, or write a wider dtype"
    )
