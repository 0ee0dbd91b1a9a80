"""Ingredients that know something: a reranker trained in the test process, and worse ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cocktail.measure.tasks.examples import read_ranked
from cocktail.measure.tasks.reranker import RerankerTask
from tests.cocktail.tiny import FAMILIES, moved, ranked, save_model, tokenizer

FAMILY = "bert-reranker"


@pytest.fixture(scope="session")
def kitchen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of a base, its fine-tune, and the base with noise on every matrix."""
    folder = tmp_path_factory.mktemp("kitchen")
    torch.manual_seed(0)
    model = FAMILIES[FAMILY][1]()
    places = {}
    rows = ranked(64, negatives=7, seed=100)
    _train(model, rows, steps=60)
    places["base"] = save_model(model.eval(), FAMILY, folder / "base")
    _train(model, rows, steps=90)
    places["tuned"] = save_model(model.eval(), FAMILY, folder / "tuned")
    base = FAMILIES[FAMILY][1]().from_pretrained(places["base"])
    places["noise"] = save_model(moved(base, 7, 1.0), FAMILY, folder / "noise")
    return places


def _train(model: torch.nn.Module, rows: list, steps: int) -> None:
    task = RerankerTask(read_ranked(rows), tokenizer(FAMILY), model, max_length=64)
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
    one = torch.ones(())
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        chosen = torch.randperm(len(rows), generator=generator)[:16].tolist()
        scores = torch.zeros(task.rows)
        for batch in task.batches(4096, chosen):
            scores = scores.index_put((batch.rows,), task.forward(model, batch))
        loss = task.losses(task.scores(scores, chosen), one).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


@pytest.fixture(scope="session")
def rows() -> list[dict]:
    """Examples that nothing was trained on."""
    return ranked(14, negatives=7, seed=5)


@pytest.fixture
def data(tmp_path: Path, rows: list[dict]) -> Path:
    from tests.cocktail.tiny import write_jsonl

    return write_jsonl(tmp_path / "examples.jsonl", rows)
