"""Forwards in bf16: taken where the loss does not notice, and said either way."""

from __future__ import annotations

import pytest

from cocktail.search import half_precision
from cocktail.search.result import SearchResult
from cocktail.search.run import search_weights

SAID = "forwards compute in"


@pytest.fixture
def search(kitchen, rows, monkeypatch: pytest.MonkeyPatch):
    """``search(**options)`` as on a processor that multiplies bf16, with enough examples."""
    monkeypatch.setattr(half_precision, "WORTH_IT", 0)
    monkeypatch.setattr("cocktail.measure.tasks.reranker.cpu_computes_in_bf16", lambda: True)

    def run(**options) -> SearchResult:
        return search_weights(
            list(kitchen.values()), "reranker", rows, progress=False, device="cpu", **options
        )

    return run


def losses(result: SearchResult) -> dict[tuple[float, ...], float]:
    """By the weights of a mix."""
    return {point.weights: point.loss.mean.mean for point in result.points}


def test_every_mix_is_measured_in_it(search) -> None:
    rounded, exact = search(), search(compute_dtype="float32")
    assert any(note.startswith(f"{SAID} bfloat16: ") for note in rounded.notes)
    assert not any(SAID in note for note in exact.notes)
    ours, theirs = losses(rounded), losses(exact)
    both = ours.keys() & theirs.keys()
    assert len(both) > 3  # the end of the way follows from the losses themselves
    # A copy of the weights that was not renewed would show as the loss of another mix.
    assert all(0 < abs(ours[weights] - theirs[weights]) < 0.03 for weights in both)


def test_the_general_side_too(search, rows) -> None:
    rounded = search(retain_data=rows)
    for point in rounded.points:
        assert point.general.mean.mean == pytest.approx(point.metric.mean.mean, abs=1e-12)


def test_what_the_loss_would_notice_is_not_done(search, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(half_precision, "NOTICED", 0.0)
    result = search()
    assert any(note.startswith(f"{SAID} float32, not in bfloat16: ") for note in result.notes)
    assert losses(result) == losses(search(compute_dtype="float32"))


def test_a_short_search_is_not_asked(search, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert not any(SAID in note for note in search().notes)


def test_a_named_strategy_stays_exact(search) -> None:
    assert not any(SAID in note for note in search(strategy="gradient").notes)
