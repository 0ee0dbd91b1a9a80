"""The choice between candidates, from their held-out losses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cocktail.search.frontier import Way, choose_point, halfway_across
from cocktail.search.objective import Measurement
from cocktail.search.result import FrontierPoint
from cocktail.search.verdict import Candidate, Interval, choose, paired_interval


def candidate(name: str, weights: tuple[float, ...], losses: np.ndarray) -> Candidate:
    measured = Measurement(losses, 1.0, 0.0, None)
    return Candidate(name, weights, measured, measured)


def pair(gain: float, noise: float, count: int = 20, prior: float = 2) -> list[Candidate]:
    random = np.random.default_rng(0)
    base = random.normal(prior, 1, count)
    other = base - gain + noise * random.normal(0, 1, count)
    return [
        candidate("uniform", (0.5, 0.5), base),
        candidate("prior", (0.6, 0.4), base),
        candidate("gradient", (0.8, 0.2), other),
    ]


def test_a_clear_gain_is_taken() -> None:
    verdict = choose(pair(gain=0.3, noise=0.2), "gradient", seed=0)
    assert (verdict.chosen, verdict.abstained) == ("gradient", False)
    assert verdict.difference is not None and verdict.difference.high < 0


def test_a_gain_within_the_noise_keeps_the_prior_and_says_so() -> None:
    for chance in (None, 0.01):
        verdict = choose(pair(gain=0.1, noise=0.8), "gradient", seed=0, chance=chance)
        assert (verdict.chosen, verdict.leader, verdict.abstained) == ("prior", "gradient", False)
        assert "cannot tell them apart" in verdict.reason


def test_examples_that_may_be_labelled_at_random_decide_nothing() -> None:
    """Not even a clear gain: a model can be less wrong than another about labels at random."""
    verdict = choose(pair(gain=0.3, noise=0.2), "gradient", seed=0, chance=0.2)
    assert (verdict.chosen, verdict.abstained) == ("uniform", True)
    assert "may as well be labelled at random" in verdict.reason


def test_nothing_stands_in_for_a_proposal_without_held_out_losses() -> None:
    """The lowest of many means is low by chance, too: no interval of one difference fits it."""
    candidates = pair(gain=0.3, noise=0.2)
    measured = candidates[2].measured
    candidates.append(Candidate("gradient", (0.9, 0.1), measured))
    candidates[2] = candidate("ensemble", (0.8, 0.2), measured.losses)
    verdict = choose(candidates, "gradient", seed=0)
    assert (verdict.chosen, verdict.leader, verdict.difference) == ("prior", "ensemble", None)
    assert "was not cross-validated" in verdict.reason


def test_pairs_are_compared_not_means() -> None:
    """Examples differ by far more than the candidates do; the pairing removes that."""
    candidates = pair(gain=0.05, noise=0.01)
    spread = candidates[0].measured.losses.std()
    assert spread > 10 * 0.05
    assert choose(candidates, "gradient", seed=0).chosen == "gradient"


def test_equal_weights_stand_in_for_a_prior_beyond_the_budget() -> None:
    equal, _, proposal = pair(gain=-0.3, noise=0.2)
    assert choose([equal, proposal], "gradient", seed=0).chosen == "uniform"


def test_two_examples_decide_nothing() -> None:
    assert choose(pair(gain=5, noise=0, count=2), "gradient", seed=0).abstained


@pytest.mark.parametrize("count", [3, 5, 12])
def test_false_alarms_are_as_rare_as_the_interval_says(count: int) -> None:
    """Under no difference the other is taken about one time in twenty, however few the examples."""
    random = np.random.default_rng(1)
    alarms = 0
    for _ in range(600):
        losses = random.normal(0, 1, (2, count))
        candidates = [
            candidate("uniform", (0.5, 0.5), losses[0]),
            candidate("gradient", (0.8, 0.2), losses[1]),
        ]
        alarms += choose(candidates, "gradient", seed=0).chosen == "gradient"
    assert 15 <= alarms <= 45


def test_interval_is_that_of_a_t_test_for_many_values() -> None:
    values = np.random.default_rng(0).normal(0.3, 1, 400)
    found = paired_interval(values, seed=0)
    half = 1.645 * values.std(ddof=1) / 20
    assert found.mean == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.01)
    assert found.high == pytest.approx(values.mean() + half, abs=0.01)


def points(retains: list[float], targets: list[float]) -> list[FrontierPoint]:
    names = ["base", *(f"p{i}" for i in range(1, len(retains)))]
    return [
        FrontierPoint(
            name, (1.0, 0.0), Interval(t, t, t), Interval(r, r, r), "base" if not i else "step"
        )
        for i, (name, r, t) in enumerate(zip(names, retains, targets, strict=True))
    ]


def test_the_wanted_point_stays_where_the_limit_allows_it() -> None:
    made = points([1.0, 1.1, 1.3], [2.0, 1.5, 1.0])
    found = choose_point(made, 2, measure="loss", more_is_better=False, max_drop=0.3)
    assert (made[found.chosen].name, found.missed_by) == ("p2", 0.0)


def test_the_best_within_the_limit_is_taken_else() -> None:
    made = points([1.0, 1.1, 1.3], [2.0, 1.5, 1.0])
    found = choose_point(made, 2, measure="loss", more_is_better=False, max_drop=0.2)
    assert made[found.chosen].name == "p1"
    assert set(found.neighbours) == {0, 2}


def test_a_metric_must_not_fall() -> None:
    made = points([0.9, 0.85, 0.5], [0.6, 0.7, 0.8])
    found = choose_point(made, 2, measure="ndcg@10", more_is_better=True, max_drop=0.05)
    assert made[found.chosen].name == "p1"
    assert found.limit == pytest.approx(0.85)


def test_an_unsatisfiable_limit_says_by_how_much_it_is_missed() -> None:
    made = points([1.0, 1.1], [2.0, 1.5])
    found = choose_point(made, 1, measure="loss", more_is_better=False, max_drop=-0.2)
    assert made[found.chosen].name == "base"
    assert found.missed_by == pytest.approx(0.2)


def test_the_crossing_step_is_halved_where_a_candidate_stands_on_the_way() -> None:
    """The limit lies at .59 of the way, the equal mix at .5."""
    way = Way((1.0, 0.0), (0.0, 1.0))

    def point(share: float, role: str) -> FrontierPoint:
        retain, target = (Interval(x, x, x) for x in (share, 1 - share))
        return FrontierPoint(f"{share:.4g}", (1 - share, share), target, retain, role)

    made = [point(0.0, "base"), point(0.5, "candidate"), point(1.0, "ingredient")]
    made += [point(step / 10, "step") for step in (1, 2, 3, 4, 6, 7, 8, 9)]
    made.append(FrontierPoint("aside", (0.2, 0.2), *([Interval(9.0, 9.0, 9.0)] * 2), "candidate"))
    for _ in range(3):
        found = choose_point(made, 2, measure="loss", more_is_better=False, max_drop=0.59)
        share = halfway_across(found, way)
        assert share is not None
        made.append(point(share, "step"))
    found = choose_point(made, 2, measure="loss", more_is_better=False, max_drop=0.59)
    assert made[found.chosen].name == "0.5875"


def test_without_a_target_the_nearest_point_within_the_limit_is_taken() -> None:
    made = points([1.0, 1.1, 1.3, 1.2], [2.0, 1.5, 1.0, 1.7])
    shares = ((1.0, 0.0), (0.4, 0.6), (0.5, 0.5), (0.6, 0.4))
    made = [replace(point, weights=weights) for point, weights in zip(made, shares, strict=True)]
    found = choose_point(made, 2, measure="loss", more_is_better=False, max_drop=0.2, blind=True)
    assert made[found.chosen].name == "p1"
    far = [replace(point, weights=(0.9, 0.1)) if point is made[1] else point for point in made]
    found = choose_point(far, 2, measure="loss", more_is_better=False, max_drop=0.2, blind=True)
    assert made[found.chosen].name == "p3"
