"""Headers: what safetensors writes is read, what we write it reads, nothing broken gets through."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cocktail.checkpoint.resolve import resolve
from cocktail.errors import CheckpointError, CocktailError
from cocktail.tensors.headers import build_header, read_header
from tests.cocktail.checkpoints import CONFIG, weights


def write_raw(path: Path, header: object, data: bytes) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(dtype: str, shape: list[int], start: int, stop: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def test_reads_what_safetensors_writes(tmp_path: Path) -> None:
    tensors = {**weights(0), "ids": torch.arange(5), "flag": torch.tensor([True])}
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    found, metadata = read_header(tmp_path / "x.safetensors")
    raw = (tmp_path / "x.safetensors").read_bytes()
    assert metadata == {"format": "pt"}
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        info = found[name]
        assert info.shape == tuple(tensor.shape)
        stored = raw[info.offset : info.offset + info.nbytes]
        assert stored == tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def test_safetensors_reads_what_is_written(tmp_path: Path) -> None:
    data = torch.arange(6, dtype=torch.float32)
    layout = [("first", "F32", (2, 3)), ("empty", "F32", (0, 4)), ("scalar", "BF16", ())]
    header, offsets = build_header(layout, {"format": "pt", "note": "ä"})
    path = tmp_path / "x.safetensors"
    path.write_bytes(header + data.numpy().tobytes() + b"\x80\x3f")
    assert offsets == [len(header), len(header) + 24, len(header) + 24]
    assert len(header) % 8 == 0
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt", "note": "ä"}
    loaded = load_file(path)
    assert torch.equal(loaded["first"], data.view(2, 3))
    assert loaded["empty"].shape == (0, 4)
    assert loaded["scalar"] == 1


BROKEN = {
    "overlap": ({"a": entry("F32", [2], 0, 8), "b": entry("F32", [2], 4, 12)}, 12, "overlaps"),
    "gap": ({"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 8, 12)}, 12, "stray bytes"),
    "past the end": ({"a": entry("F32", [4], 0, 16)}, 8, "cut off: a"),
    "bytes left over": ({"a": entry("F32", [1], 0, 4)}, 12, "describes"),
    "offsets against shape": ({"a": entry("F32", [3], 0, 8)}, 8, "needs 12 bytes"),
    "backwards": ({"a": entry("F32", [2], 8, 0)}, 8, "needs 8 bytes"),
    "negative shape": ({"a": entry("F32", [-1], 0, 4)}, 4, "shape"),
    "boolean shape": ({"a": entry("F32", [True], 0, 4)}, 4, "shape"),
    "huge shape": ({"a": entry("F32", [2**62, 2**62], 0, 4)}, 4, "needs"),
    "float offsets": ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0.0, 4.0]}}, 4, "data"),
    "unknown dtype": ({"a": entry("F4", [8], 0, 4)}, 4, "known types are"),
    "no offsets": ({"a": {"dtype": "F32", "shape": [1]}}, 4, "lacks"),
    "not an object": ([1, 2], 0, "not a JSON object"),
    "metadata": ({"__metadata__": {"a": 1}}, 0, "__metadata__"),
    "no JSON": (b"{nope", 0, "not valid JSON"),
    "a name twice": (b'{"a": 1, "a": 2}', 0, "appears twice"),
    "not UTF-8": (b'{"\xff": 1}', 0, "not valid JSON"),
    "endless nesting": (b"[" * 100_000, 0, "not valid JSON"),
}


@pytest.mark.parametrize(("header", "size", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_refuses_broken_headers(tmp_path: Path, header: object, size: int, message: str) -> None:
    path = write_raw(tmp_path / "x.safetensors", header, b"\0" * size)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_header(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\0" * 7, struct.pack("<Q", 2**63), b"\xff" * 40])
def test_refuses_short_and_absurd_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        read_header(path)


def mutate(raw: bytes, rng: random.Random) -> bytes:
    """Flip, cut, repeat or insert bytes, mostly where the header is."""
    changed = bytearray(raw)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(min(len(changed), 400)) if changed else 0
        action = rng.randrange(5)
        if action == 0 and changed:
            changed[place] = rng.randrange(256)
        elif action == 1:
            del changed[rng.randrange(len(changed) + 1) :]
        elif action == 2:
            changed[place:place] = rng.randbytes(rng.randint(1, 9))
        elif action == 3 and changed:
            del changed[place : place + rng.randint(1, 9)]
        elif changed:
            digits = [i for i, byte in enumerate(changed[:400]) if chr(byte).isdigit()]
            if digits:
                changed[rng.choice(digits)] = ord(rng.choice("0123456789-.eE"))
    return bytes(changed)


def test_fuzzed_headers_raise_nothing_else(tmp_path: Path) -> None:
    save_file(weights(0), tmp_path / "x.safetensors", metadata={"format": "pt"})
    raw = (tmp_path / "x.safetensors").read_bytes()
    rng = random.Random(0)
    refused = 0
    for _ in range(5000):
        (tmp_path / "y.safetensors").write_bytes(mutate(raw, rng))
        try:
            tensors, _ = read_header(tmp_path / "y.safetensors")
        except CocktailError:
            refused += 1
        else:
            size = (tmp_path / "y.safetensors").stat().st_size
            assert all(info.offset + info.nbytes <= size for info in tensors.values())
    assert refused > 3000


def test_fuzzed_indexes_raise_nothing_else(tmp_path: Path) -> None:
    names = list(weights(0))
    for number, part in enumerate((names[:2], names[2:]), start=1):
        tensors = {name: weights(0)[name] for name in part}
        save_file(tensors, tmp_path / f"model-{number:05d}-of-00002.safetensors")
    weight_map = {
        name: f"model-0000{1 + (i >= 2)}-of-00002.safetensors" for i, name in enumerate(names)
    }
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    index = tmp_path / "model.safetensors.index.json"
    good = json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}).encode()
    index.write_bytes(good)
    assert len(list(resolve(tmp_path))) == len(names)
    rng = random.Random(1)
    refused = 0
    for _ in range(3000):
        index.write_bytes(mutate(good, rng))
        try:
            resolve(tmp_path)
        except CocktailError:
            refused += 1
    assert refused > 1500
