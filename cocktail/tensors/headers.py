"""Read and write the header of a safetensors file, trusting nothing in it.

The format: eight bytes with the header's length (little endian), the header (JSON), then the
tensors' bytes. https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cocktail.errors import CheckpointError, listed
from cocktail.tensors.dtypes import ITEM_SIZE
from cocktail.tensors.info import TensorInfo

if TYPE_CHECKING:
    pass

MAX_HEADER_BYTES = 100_000_000  # what the reference implementation accepts
ALIGNMENT = 8


def read_header(path: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Read the header of a safetensors file.

    Returns:
        The tensors by name, in the order of their data, and the file's own metadata.

    Raises:
        CheckpointError: the file is truncated, is not a safetensors file, or its offsets overlap,
            leave a gap, leave the file, or do not match dtype and shape.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header_bytes = _header_bytes(path, size, file.read(8))
            raw = file.read(header_bytes)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    entries = _parse(path, raw)
    metadata = _metadata(path, entries.pop("__metadata__", {}))
    start = 8 + header_bytes
    tensors = [_tensor(path, name, entry, start) for name, entry in entries.items()]
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.nbytes))
    _require_contiguous(path, tensors, start, size)
    return {tensor.name: tensor for tensor in tensors}, metadata


def build_header(
    tensors: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]
) -> tuple[bytes, list[int]]:
    """Lay out tensors one after another.

    Args:
        tensors: name, dtype code and shape of each, in the order of their data.
        metadata: a map of text to text to store in the header.

    Returns:
        The first bytes of the file up to the data, and each tensor's offset from the file's start.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    ends = [0]
    for name, dtype, shape in tensors:
        ends.append(ends[-1] + math.prod(shape) * ITEM_SIZE[dtype])
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": ends[-2:]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    if len(text) > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"the output's header would take {len(text):,} bytes - readers accept at most "
            f"{MAX_HEADER_BYTES:,} - choose a smaller --max-shard-size"
        )
    prefix = struct.pack("<Q", len(text)) + text
    return prefix, [len(prefix) + end for end in ends[:-1]]


def _broken(path: Path, found: str) -> CheckpointError:
    return CheckpointError(f"{path}: {found} - the file is damaged - copy or download it again")


def _header_bytes(path: Path, size: int, first: bytes) -> int:
    if len(first) < 8:
        raise _broken(path, f"{size} bytes, too short for a safetensors header")
    length: int = struct.unpack("<Q", first)[0]
    if length > MAX_HEADER_BYTES or 8 + length > size:
        raise _broken(path, f"its header should take {length:,} bytes, but the file has {size:,}")
    return length


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name appears twice")
    return result


def _parse(path: Path, raw: bytes) -> dict[str, Any]:
    try:
        entries = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise _broken(path, f"its header is not valid JSON ({error})") from None
    if not isinstance(entries, dict):
        raise _broken(path, "its header is not a JSON object")
    return entries


def _metadata(path: Path, metadata: Any) -> dict[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _broken(path, "its __metadata__ is not a map of text to text")
    return metadata


def is_text(value: str) -> bool:
    """Whether it can be written in UTF-8: it has no lone surrogate."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _tensor(path: Path, name: str, entry: Any, start: int) -> TensorInfo:
    if not is_text(name):
        raise _broken(path, f"the name of tensor {name!r} is not text")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _broken(path, f"tensor {name!r} lacks dtype, shape or data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_SIZE:
        raise CheckpointError(
            f"{path}: tensor {name!r} has dtype {dtype!r} - known types are {', '.join(ITEM_SIZE)} "
            "- convert the checkpoint to one of these"
        )
    if not isinstance(shape, list) or not all(_is_size(n) for n in shape):
        raise _broken(path, f"tensor {name!r} has shape {shape!r}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_size, offsets)):
        raise _broken(path, f"tensor {name!r} has data_offsets {offsets!r}")
    tensor = TensorInfo(name, dtype, tuple(shape), path, start + offsets[0])
    if offsets[1] - offsets[0] != tensor.nbytes:
        raise _broken(
            path,
            f"tensor {name!r} of {dtype} {shape} needs {tensor.nbytes:,} bytes, "
            f"but its offsets give {offsets[1] - offsets[0]:,}",
        )
    return tensor


def _require_contiguous(path: Path, tensors: list[TensorInfo], start: int, size: int) -> None:
    end = start
    for tensor in tensors:
        if tensor.offset < end:
            raise _broken(path, f"tensor {tensor.name!r} overlaps the one before it")
        if tensor.offset > end:
            raise _broken(path, f"{tensor.offset - end:,} stray bytes before {tensor.name!r}")
        end += tensor.nbytes
    if end != size:
        names = listed([tensor.name for tensor in tensors if tensor.offset + tensor.nbytes > size])
        short = f", so these are cut off: {names}" if names else ""
        raise _broken(path, f"its header describes {end:,} bytes, but the file has {size:,}{short}")
