"""Cross-validation: what is held out has no part in what it is measured at."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from cocktail import search_weights
from cocktail.measure.bench import prepare, search_plan
from cocktail.search import cross_validation
from cocktail.search.cross_validation import STRENGTHS, Outputs, choose_strength, cross_validate
from cocktail.search.objective import EnsembleObjective
from cocktail.search.options import SearchOptions
from cocktail.search.prior import Landmarks
from tests.cocktail.tiny import tokenizer


@pytest.fixture(scope="module")
def outputs(kitchen, rows) -> Outputs:
    """Of the base, its fine-tune and the noise."""
    plan = search_plan(list(kitchen.values()), "reranker")
    bench = prepare(plan, rows, None, SearchOptions(), device="cpu")
    kept = [bench.mixture.rows(bench.task, np.eye(3)[i]).double() for i in range(3)]
    return Outputs(bench.task, torch.stack(kept), Landmarks.ingredients(kept))


def test_weights_are_found_without_what_they_are_measured_on(outputs) -> None:
    task = outputs.task
    examples = list(range(len(task.places)))
    ensemble = outputs.objective(examples)
    fitted: list[list[int]] = []

    def fit(training):
        fitted.append(list(training))
        return np.eye(3)[len(fitted) % 3]

    def run(weights, part):
        assert not set(part) & set(fitted[-1])
        assert sorted([*part, *fitted[-1]]) == examples
        return ensemble.rows(weights)

    found = cross_validate(task, examples, fit, run)
    assert len(fitted) == 5
    # Each example's loss is that of its own fold's model, at the one scale.
    for fold in range(5):
        part = examples[fold::5]
        rows = ensemble.rows(np.eye(3)[(fold + 1) % 3])
        alone = task.losses(task.scores(rows, part), torch.tensor(found.scale))
        assert found.losses[part] == pytest.approx(alone.numpy())


def test_the_strength_with_the_lowest_held_out_loss_is_taken(outputs, monkeypatch) -> None:
    """Weights that a strength leads to are set by hand: good ones for one strength alone."""
    good, bad = np.array([0.0, 1.0, 0.0]), np.array([0.0, 0.0, 1.0])
    examples = list(range(len(outputs.task.places)))
    values = [EnsembleObjective(outputs.task, outputs.kept, examples).value(w) for w in (good, bad)]
    assert values[0] < values[1]
    for best in STRENGTHS:

        def fit(self, multiple, start=None, tolerance=0.0, best=best):
            weights = good if multiple == best else bad
            return cross_validation.Fit(weights, multiple, weights)

        monkeypatch.setattr(cross_validation._Fitting, "fit", fit)
        assert choose_strength(outputs, examples) == best


def test_reported_losses_are_those_of_the_mixed_model(kitchen, rows) -> None:
    """Mixed, run and scored without any of the package."""
    names = [kitchen["base"], kitchen["tuned"]]
    result = search_weights(names, "reranker", rows, progress=False, device="cpu")
    models = [AutoModelForSequenceClassification.from_pretrained(name) for name in names]
    words = tokenizer("bert-reranker")
    for candidate in result.candidates:
        states = [model.state_dict() for model in models]
        mixed = AutoModelForSequenceClassification.from_pretrained(names[0])
        mixed.load_state_dict({
            name: sum(w * state[name] for w, state in zip(candidate.weights, states, strict=True))
            for name in states[0]
        })  # fmt: skip
        for row, loss in zip(rows, candidate.measured.losses, strict=True):
            texts = [*row["pos"][:1], *row["neg"]]
            inputs = words([row["query"]] * len(texts), texts, padding=True, return_tensors="pt")
            with torch.no_grad():
                scores = mixed.eval()(**inputs).logits[:, 0].double() * candidate.measured.scale
            assert loss == pytest.approx(-scores.log_softmax(0)[0].item(), abs=1e-4)
