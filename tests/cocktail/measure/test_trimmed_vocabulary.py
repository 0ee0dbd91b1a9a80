"""A search without the words that no example uses finds what it finds with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cocktail import search_weights
from cocktail.measure import bench as prepare_module
from cocktail.measure.bench import prepare
from cocktail.measure.refillable import search_plan
from cocktail.measure.trimmed_vocabulary import TrimmedEmbedding
from cocktail.search.objective import MixObjective
from cocktail.search.options import SearchOptions
from tests.cocktail.tiny import FAMILIES, examples, moved, save_model

VOCABULARY = 500
RANKING = [name for name, (kind, _) in FAMILIES.items() if kind in ("reranker", "encoder")]


def folders(family: str, folder: Path) -> list[str]:
    """A base and two models near it, with far more rows than there are words."""
    paths = []
    for i in range(3):
        torch.manual_seed(1)
        model = FAMILIES[family][1]().eval()
        model.resize_token_embeddings(VOCABULARY, mean_resizing=False)
        paths.append(save_model(moved(model, i, 0.3 if i else 0), family, folder / f"m{i}"))
    return paths


def benches(family: str, folder: Path, monkeypatch: pytest.MonkeyPatch):
    """The same trimmed, and whole."""
    models, rows = folders(family, folder), examples(family)

    def bench():
        plan = search_plan(models, FAMILIES[family][0])
        return prepare(plan, rows, rows[:2], SearchOptions(), device="cpu")

    trimmed = bench()
    monkeypatch.setattr(prepare_module, "trim_vocabulary", lambda mixture, tasks: None)
    return trimmed, bench()


@pytest.mark.parametrize("family", RANKING)
def test_outputs_and_gradients_are_those_of_the_whole_table(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trimmed, whole = benches(family, tmp_path, monkeypatch)
    table = trimmed.mixture.model.get_input_embeddings()
    assert isinstance(table, TrimmedEmbedding)
    assert len(table.weight) < 30
    assert len(whole.mixture.model.get_input_embeddings().weight) == VOCABULARY
    for weights in (np.array([1.0, 0, 0]), np.array([0.5, 0.3, 0.2])):
        for task, other in ((trimmed.task, whole.task), (trimmed.retain, whole.retain)):
            rows = trimmed.mixture.rows(task, weights)
            assert torch.equal(rows, whole.mixture.rows(other, weights))
        found, expected = (
            MixObjective(each.mixture, each.task).value_and_gradient(weights)
            for each in (trimmed, whole)
        )
        assert found[0] == expected[0]
        np.testing.assert_allclose(found[1], expected[1], rtol=1e-5)


def test_a_search_gives_the_same_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models, rows = folders("roberta-reranker", tmp_path), examples("roberta-reranker")

    found = search_weights(models, "reranker", rows, device="cpu", progress=False)
    monkeypatch.setattr(prepare_module, "trim_vocabulary", lambda mixture, tasks: None)
    expected = search_weights(models, "reranker", rows, device="cpu", progress=False)
    assert found.weights == pytest.approx(expected.weights, abs=1e-6)
    assert (found.forwards, found.mixes) == (expected.forwards, expected.mixes)


@pytest.mark.parametrize("family", ["llama", "tied-llama", "t5"])
def test_what_writes_words_keeps_them_all(family: str, tmp_path: Path) -> None:
    plan = search_plan(folders(family, tmp_path), FAMILIES[family][0])
    bench = prepare(plan, examples(family), None, SearchOptions(), device="cpu")
    assert len(bench.mixture.model.get_input_embeddings().weight) == VOCABULARY


@pytest.mark.parametrize("use", ["weight", "module"])
def test_a_table_that_is_used_elsewhere_stays_whole(use: str, tmp_path: Path) -> None:
    plan = search_plan(folders("bert-encoder", tmp_path), "encoder")
    bench = prepare(plan, examples("bert-encoder"), None, SearchOptions(), device="cpu")
    model = bench.mixture.model
    table = nn.Embedding(VOCABULARY, 32)
    model.set_input_embeddings(table)
    if use == "weight":
        model.also = nn.Linear(32, VOCABULARY, bias=False)
        model.also.weight = table.weight
    else:
        model.also = table
    prepare_module.trim_vocabulary(bench.mixture, [bench.task])
    assert model.get_input_embeddings() is table


def test_a_word_without_a_row_is_an_error() -> None:
    table = TrimmedEmbedding(nn.Embedding(9, 2), torch.tensor([1, 4]))
    assert torch.equal(table(torch.tensor([[4, 1]])), table.weight[[1, 0]][None])
    with pytest.raises(IndexError):
        table(torch.tensor([2]))


def test_padding_has_a_row_where_no_full_batch_is_padded(tmp_path: Path) -> None:
    family = "bert-reranker"
    rows = [
        {"query": "red", "pos": [" ".join(["green"] * n)], "neg": [" ".join(["blue"] * n)]}
        for n in (60, 10)
        for _ in range(16)
    ]
    options = SearchOptions(max_input_length=32)  # 32 long pairs are a batch
    plan = search_plan(folders(family, tmp_path), "reranker")
    bench = prepare(plan, rows, None, options, device="cpu")
    assert isinstance(bench.mixture.model.get_input_embeddings(), TrimmedEmbedding)
    for long in range(1, 32):
        bench.mixture.rows(bench.task, np.array([1.0, 0, 0]), [0, long])
