"""A mixed model in memory that nothing was written for."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch

from cocktail import mix_models
from cocktail.measure import in_memory
from cocktail.tensors.dtypes import as_bytes
from tests.cocktail.tiny import FAMILIES, ingredients


def test_large_tensors_hold_what_small_ones_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = "bert-reranker"
    models = ingredients(family, tmp_path, count=2)

    def mixed() -> torch.nn.Module:
        return mix_models(models, FAMILIES[family][0], [0.3, 0.7], progress=False)

    def stored(model: torch.nn.Module) -> dict[str, bytes]:
        return {name: as_bytes(value).tobytes() for name, value in model.state_dict().items()}

    small = stored(mixed())
    monkeypatch.setattr(in_memory, "_LARGE", 1)
    model = mixed()
    gc.collect()
    assert stored(model) == small
    with torch.no_grad():  # it is the model's own memory, to train on
        for parameter in model.parameters():
            parameter.add_(1)
