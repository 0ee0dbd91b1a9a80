"""What a search refuses before its model is filled, and where it runs."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cocktail.errors import CheckpointError, CocktailError, RecipeError
from cocktail.measure import bench as prepare_module
from cocktail.measure.bench import prepare
from cocktail.measure.processes import Processes
from cocktail.measure.refillable import search_plan
from cocktail.measure.tasks.examples import ExampleError
from cocktail.search.options import SearchOptions
from tests.cocktail.tiny import examples, ingredients, ranked


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    return {
        family: ingredients(family, tmp_path_factory.mktemp(family), count=2)
        for family in ("bert-reranker", "bert-encoder", "llama")
    }


def refused(
    error: type[CocktailError], words: str, names: list[str], rows: Any, retain: Any = None,
    device: str = "cpu", **options: Any,
) -> None:  # fmt: skip
    with pytest.raises(error, match=words) as caught:
        prepare(search_plan(names, None), rows, retain, SearchOptions(**options), device=device)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kept", [(), ("tokenizer_config.json",)])
def test_a_tokenizer_that_transformers_makes_up_is_refused(tmp_path: Path, kept: Any) -> None:
    """Its few special tokens would make every text the same."""
    names = ingredients("bert-reranker", tmp_path, count=2)
    for path in Path(names[0]).glob("*token*"):
        if path.name not in kept:
            path.unlink()
    if kept:
        settings = {"tokenizer_class": "BertTokenizer"}
        Path(names[0], "tokenizer_config.json").write_text(json.dumps(settings))
    refused(CheckpointError, "its tokenizer does not load .* save it", names, ranked(3))


def test_options_of_other_kinds_are_refused(models: dict[str, list[str]]) -> None:
    names, rows = models["llama"], examples("llama")
    refused(RecipeError, "neg_number is 3 for a decoder", names, rows, neg_number=3)
    refused(RecipeError, "pooling is 'cls' for a decoder", names, rows, pooling="cls")


def test_passages_without_a_rival_are_refused(models: dict[str, list[str]]) -> None:
    rows = ranked(3)
    alone = [{**row, "neg": []} for row in rows]
    names = models["bert-reranker"]
    refused(ExampleError, "the examples: no example has a negative", names, alone)
    refused(ExampleError, "no example has a negative", names, rows, neg_number=0)
    refused(ExampleError, "no example has a negative", names, rows, alone)
    refused(ExampleError, "no example has a negative", models["bert-encoder"], alone[:1])
    plan = search_plan(models["bert-encoder"], None)
    assert prepare(plan, alone, None, SearchOptions(), device="cpu").task.rows == 6


@pytest.mark.parametrize("device", ["meta", "hpu", "privateuseone", "warp"])
def test_a_device_that_cannot_compute_is_refused(models: dict[str, list[str]], device: str) -> None:
    names = models["bert-reranker"]
    refused(CheckpointError, f"'{device}' cannot be used", names, ranked(3), device=device)


def test_each_of_several_processes_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch, "zeros", lambda *_, **__: SimpleNamespace(item=lambda: 0.0))
    monkeypatch.setenv("LOCAL_RANK", "3")
    processes = Processes()
    assert prepare_module._device("cuda", processes) == torch.device("cuda")
    processes.count = 4
    assert prepare_module._device("cuda", processes) == torch.device("cuda:1")
    assert prepare_module._device("cuda:0", processes) == torch.device("cuda:0")


@pytest.mark.parametrize("size", ["2", "two"])
def test_processes_that_nobody_started_are_refused(
    monkeypatch: pytest.MonkeyPatch, size: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", size)
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(RecipeError, match=f"WORLD_SIZE is {size}, but") as caught:
        Processes()
    assert "\n" not in str(caught.value)
