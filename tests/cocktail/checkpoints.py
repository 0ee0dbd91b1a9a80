"""Small checkpoints for the tests, written by safetensors itself."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cocktail.measure.in_memory import put_block
from cocktail.mix.stream import Digests, stream
from cocktail.plan.mixed_tensor import MixedTensor
from cocktail.plan.plan import Plan
from cocktail.tensors.dtypes import Bytes, torch_dtype

os.environ.setdefault("HF_HUB_OFFLINE", "1")

CONFIG: dict[str, Any] = {
    "architectures": ["BertModel"],
    "model_type": "made-up",  # a class that transformers has would ask for all of its tensors
    "hidden_size": 4,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "intermediate_size": 8,
    "vocab_size": 10,
}

Save = Callable[..., Path]


def weights(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """A few tensors that look like a BERT's, sizes odd on purpose."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    return {
        "embeddings.word_embeddings.weight": normal(10, 4),
        "encoder.layer.0.output.dense.weight": normal(7, 5),
        "encoder.layer.0.output.LayerNorm.weight": normal(3),
        "encoder.layer.0.scale": normal(),
    }


def load(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder's safetensors files."""
    files = sorted(folder.glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def streamed(plan: Plan, **options: Any) -> tuple[dict[str, torch.Tensor], Digests]:
    """The mix in memory, and the digests of what passed."""
    mixed = {t.name: torch.empty(t.shape, dtype=torch_dtype(t.dtype)) for t in plan.tensors}

    def sink(tensor: MixedTensor, start: int, block: Bytes) -> None:
        put_block(mixed[tensor.name], start, block, tensor.dtype)

    return mixed, stream(plan, sink, **options)


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Writes a checkpoint folder: ``save("name", tensors, config_key=value)``."""

    def write(name: str, tensors: Mapping[str, torch.Tensor], **config: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(CONFIG | config))
        return folder

    return write


@pytest.fixture
def pair(save: Save) -> tuple[Path, Path]:
    """Two fp32 checkpoints of one architecture."""
    return save("a", weights(0)), save("b", weights(1))
