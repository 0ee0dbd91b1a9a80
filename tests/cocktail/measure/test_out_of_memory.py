"""Where the memory of the device runs out, batches get smaller and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cocktail.errors import CocktailError
from cocktail.measure.bench import Bench, prepare
from cocktail.measure.refillable import search_plan
from cocktail.search.options import SearchOptions
from tests.cocktail.tiny import FAMILIES, examples, ingredients

WEIGHTS = np.array([0.5, 0.3, 0.2])


def bench(family: str, folder: Path) -> Bench:
    plan = search_plan(ingredients(family, folder), FAMILIES[family][0])
    return prepare(plan, examples(family), None, SearchOptions(), device="cpu")


def run_out(bench: Bench, monkeypatch: pytest.MonkeyPatch, enough: int) -> list[int]:
    """A device whose memory is full after one batch of more than so many tokens.

    Returns the tokens of the batches that have run.
    """
    ran: list[int] = []
    forward = type(bench.task).forward

    def limited(self, model, batch):
        if ran and ran[-1] > enough:
            ran.clear()
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        ran.append(batch.tokens)
        return forward(self, model, batch)

    monkeypatch.setattr(type(bench.task), "forward", limited)
    return ran


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_and_gradient_are_those_of_large_batches(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = bench(family, tmp_path)
    mixture, task = made.mixture, made.task
    rows = mixture.rows(task, WEIGHTS)
    upstream = torch.randn(rows.shape, generator=torch.Generator().manual_seed(0))
    _, slopes = mixture.gradient(task, WEIGHTS, upstream, None)
    text = max(batch.tokens for batch in task.batches(1))
    mixture.forward_tokens = 8 * text
    ran = run_out(made, monkeypatch, enough=2 * text)
    again, halved = mixture.gradient(task, WEIGHTS, upstream, None)
    assert mixture.backward_tokens == 2 * text
    assert sum(ran) == sum(batch.tokens for batch in task.batches(2 * text))
    torch.testing.assert_close(again, rows, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(halved, slopes, rtol=1e-4)
    torch.testing.assert_close(mixture.rows(task, WEIGHTS), rows, rtol=1e-4, atol=1e-5)
    assert mixture.forward_tokens == 2 * text


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_models_keep_the_logits_of_the_same_tokens_in_any_batches(
    family: str, tmp_path: Path
) -> None:
    made = bench(family, tmp_path)
    first, other = np.eye(3)[:2]
    made.mixture.rows(made.task, first, keep=True)
    kept = made.mixture.rows(made.task, other, keep=True)
    made.mixture.forward_tokens = 1
    again = made.mixture.rows(made.task, other, keep=True)
    torch.testing.assert_close(again, kept, rtol=1e-4, atol=1e-5)


def test_a_text_that_does_not_fit_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = bench("llama", tmp_path)
    longest = max(batch.tokens for batch in made.task.batches(1))
    made.mixture.forward_tokens = 4 * longest
    run_out(made, monkeypatch, enough=0)
    with pytest.raises(CocktailError, match=f"a batch of {longest} tokens does not fit into") as e:
        made.mixture.rows(made.task, WEIGHTS)
    assert "\n" not in str(e.value)


def test_a_model_that_does_not_fit_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments, **others):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(torch.nn.Module, "to", full)
    with pytest.raises(CocktailError, match="the model does not fit into the memory of cpu") as e:
        bench("llama", tmp_path)
    assert "\n" not in str(e.value)
