"""Metrics against values worked by hand, ties included, and the bootstrap's behaviour."""

import math

import numpy as np
import pytest

from reranker_ft.errors import RerankerError
from reranker_ft.evaluate.metrics import (
    Estimate,
    bootstrap_difference,
    bootstrap_mean,
    per_query_metrics,
)


def metrics_of(scores: list[float], grades: list[int], **options) -> dict[str, float]:
    """The metrics of a single query."""
    table = per_query_metrics([np.array(scores)], [np.array(grades)], **options)
    return {name: values.item() for name, values in table.items()}


def test_distinct_scores_by_hand():
    # Ranking: n p n p n, so the positives stand at ranks 2 and 4.
    got = metrics_of([0.9, 0.8, 0.7, 0.6, 0.5], [0, 1, 0, 1, 0])
    ideal = 1 + 1 / math.log2(3)
    assert got == pytest.approx(
        {
            "mrr@10": 1 / 2,
            "ndcg@10": (1 / math.log2(3) + 1 / math.log2(5)) / ideal,
            "map": (1 / 2 + 2 / 4) / 2,
            "recall@1": 0.0,
            "recall@5": 1.0,
            "recall@10": 1.0,
        },
        abs=1e-12,
    )


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]])
def test_a_positive_tied_with_negatives_ranks_after_them(order):
    # 0.5 is shared by one positive and two negatives below a leading negative: rank 4 of 4,
    # wherever the positive stands in the input.
    scores, grades = np.array([0.9, 0.5, 0.5, 0.5])[order], np.array([0, 1, 0, 0])[order]
    got = metrics_of(scores.tolist(), grades.tolist())
    assert got["mrr@10"] == got["map"] == 1 / 4
    assert got["ndcg@10"] == pytest.approx(1 / math.log2(5), abs=1e-12)
    assert (got["recall@1"], got["recall@5"]) == (0.0, 1.0)


def test_a_constant_model_gets_the_worst_ranking():
    got = metrics_of([0.0] * 12, [1] + [0] * 11)
    assert got["mrr@10"] == got["ndcg@10"] == got["recall@10"] == 0.0
    assert got["map"] == pytest.approx(1 / 12)  # MAP alone looks below rank 10.


def test_scores_closer_than_float32_still_rank():
    assert metrics_of([1.0 + 1e-12, 1.0], [1, 0])["mrr@10"] == 1.0
    assert metrics_of([1.0, 1.0 + 1e-12], [1, 0])["mrr@10"] == 0.5


def test_grades_are_gains_of_ndcg():
    got = metrics_of([0.3, 0.2, 0.1], [1, 3, 0])
    dcg, ideal = 1 + 3 / math.log2(3), 3 + 1 / math.log2(3)
    assert got["ndcg@10"] == pytest.approx(dcg / ideal, abs=1e-12)
    assert got["mrr@10"] == 1.0


def test_the_lower_grade_goes_first_within_a_tie():
    got = metrics_of([0.5, 0.5], [2, 1])
    assert got["ndcg@10"] == pytest.approx((1 + 2 / math.log2(3)) / (2 + 1 / math.log2(3)))


def test_reciprocal_rank_is_cut_after_ten():
    at_ten = metrics_of(list(range(20, 0, -1)), [0] * 9 + [1] + [0] * 10)
    at_eleven = metrics_of(list(range(20, 0, -1)), [0] * 10 + [1] + [0] * 9)
    assert at_ten["mrr@10"] == pytest.approx(1 / 10)
    assert at_eleven["mrr@10"] == 0.0
    assert at_eleven["map"] == pytest.approx(1 / 11)


def test_queries_keep_their_order_and_recall_takes_any_cutoff():
    worst_first = [np.arange(30.0), -np.arange(30.0)]
    grades = [np.eye(30, dtype=int)[0], np.eye(30, dtype=int)[0]]
    table = per_query_metrics(worst_first, grades, recall_cutoffs=(2, 30))
    assert list(table) == ["mrr@10", "ndcg@10", "map", "recall@2", "recall@30"]
    assert table["map"].tolist() == pytest.approx([1 / 30, 1.0])
    assert table["recall@2"].tolist() == [0.0, 1.0]
    assert table["recall@30"].tolist() == [1.0, 1.0]
    assert all(values.dtype == np.float64 for values in table.values())


@pytest.mark.parametrize(
    ("scores", "grades", "found"),
    [
        ([0.1, math.nan], [1, 0], "1 NaN"),
        ([0.1, 0.2], [0, 0], "no positive"),
        ([0.1, 0.2], [1], r"shape \(2,\)"),
    ],
)
def test_what_has_no_metric_is_refused(scores, grades, found):
    with pytest.raises(RerankerError, match=found):
        metrics_of(scores, grades)


def test_bootstrap_interval_agrees_with_the_normal_approximation():
    values = np.random.default_rng(3).normal(0.6, 0.2, size=400)
    got = bootstrap_mean(values)
    half_width = 1.96 * values.std() / math.sqrt(400)
    assert got.mean == pytest.approx(values.mean())
    assert got.low == pytest.approx(values.mean() - half_width, abs=0.05 * half_width)
    assert got.high == pytest.approx(values.mean() + half_width, abs=0.05 * half_width)


def test_bootstrap_is_seeded_and_one_value_has_no_interval():
    values = np.random.default_rng(0).uniform(size=50)
    assert bootstrap_mean(values, seed=1) == bootstrap_mean(values, seed=1)
    assert bootstrap_mean(values, seed=1) != bootstrap_mean(values, seed=2)
    assert bootstrap_mean(np.array([0.25])) == Estimate(0.25, -math.inf, math.inf)
    assert bootstrap_mean(np.array([0.25]), bounds=(0, 1)) == Estimate(0.25, 0, 1)
    few = bootstrap_mean(np.array([1.0, 1.0, 0.0]), bounds=(0, 1))
    assert (few.low, few.high) == (0, 1)
    with pytest.raises(RerankerError, match="0 queries"):
        bootstrap_mean(np.array([]))


def test_few_values_get_the_width_of_student_s_t():
    """Of intervals of four normal values at 95 %, the plain percentile bootstrap holds 80 %."""
    random = np.random.default_rng(5)
    hits = 0
    for seed in range(300):
        found = bootstrap_mean(random.normal(size=4), seed=seed, samples=500)
        hits += found.low <= 0 <= found.high
    assert 0.91 <= hits / 300 <= 0.99


def test_paired_difference_is_narrower_than_the_means():
    hardness = np.random.default_rng(0).uniform(size=200)
    better = bootstrap_difference(hardness + 0.01, hardness)
    assert (better.low, better.high) == pytest.approx((0.01, 0.01))
    assert bootstrap_mean(hardness).high - bootstrap_mean(hardness).low > 0.05
    with pytest.raises(RerankerError, match="same queries"):
        bootstrap_difference(hardness, hardness[1:])


def test_what_was_not_retrieved_has_no_rank_and_counts_as_lost():
    got = metrics_of([1.0, -np.inf, 0.5], [1, 2, 0])
    assert got["ndcg@10"] == pytest.approx(1 / (2 + 1 / math.log2(3)))
    assert (got["map"], got["recall@10"], got["mrr@10"]) == (0.5, 0.5, 1.0)
    nothing = metrics_of([-np.inf], [1])
    assert set(nothing.values()) == {0.0}
