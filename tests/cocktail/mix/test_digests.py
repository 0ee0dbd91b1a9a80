"""Digests depend on names and data, and on nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import xxhash
from safetensors.torch import save_file

from cocktail.checkpoint.resolve import resolve
from cocktail.mix.digests import checkpoint_digest, join_segments, join_tensors
from tests.cocktail.checkpoints import Save, weights


def digest(folder: Path, *left_out: str) -> str:
    return checkpoint_digest(resolve(folder), left_out, lambda _: None)


def test_by_hand(save: Save) -> None:
    tensor = torch.arange(6.0).reshape(2, 3)
    one = xxhash.xxh3_128(xxhash.xxh3_128(tensor.numpy().tobytes()).digest()).hexdigest()
    assert digest(save("a", {"w": tensor})) == xxhash.xxh3_128(f"w {one}\n".encode()).hexdigest()


def test_shards_and_order_do_not_matter(save: Save) -> None:
    whole = save("whole", weights(0))
    shards = save("shards", weights(0))
    (shards / "model.safetensors").unlink()
    names = sorted(weights(0), reverse=True)
    files = {f"model-{i}-of-2.safetensors": names[i::2] for i in range(2)}
    for file, held in files.items():
        save_file({name: weights(0)[name] for name in held}, shards / file, {"format": "pt"})
    table = {name: file for file, held in files.items() for name in held}
    (shards / "model.safetensors.index.json").write_text(
        f'{{"weight_map": {table}}}'.replace("'", '"')
    )
    assert digest(shards) == digest(whole)


@pytest.mark.parametrize("name", list(weights(0)))
def test_every_element_and_every_name_counts(save: Save, name: str) -> None:
    state = weights(0)
    before = digest(save("before", state))
    changed = {**state, name: state[name].clone()}
    changed[name].view(-1)[-1] += 1
    assert digest(save("changed", changed)) != before
    renamed = {f"{key}x" if key == name else key: value for key, value in state.items()}
    assert digest(save("renamed", renamed)) != before
    less = {key: value for key, value in state.items() if key != name}
    assert digest(save("less", less)) == digest(save("all", state), name) != before


def test_segments_are_hashed_in_order() -> None:
    assert join_segments([b"a", b"b"]) != join_segments([b"b", b"a"])
    assert join_tensors({"a": "1", "b": "2"}) == join_tensors({"b": "2", "a": "1"})
