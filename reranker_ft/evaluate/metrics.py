"""Ranking metrics of scored queries, with bootstrap intervals.

The metrics are trec_eval's, computed by ``pytrec_eval-terrier``; this module only decides how ties
rank and how certain the averages are.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import pytrec_eval
from numpy.typing import NDArray
from scipy.special import ndtri, stdtrit
from scipy.stats import bootstrap

from reranker_ft.errors import RerankerError

FloatArray = NDArray[np.float64]

RANK_CUTOFF = 10
METRIC_BOUNDS = (0.0, 1.0)
"""Of every metric here."""
CONFIDENCE = 0.95
"""Of all intervals of this package."""
BOOTSTRAP_SAMPLES = 10_000
# Resampled values held at once: 4 Mi indices and as many values are 64 MiB.
_BOOTSTRAP_BLOCK = 4 * 2**20


@dataclass(frozen=True)
class Estimate:
    """A mean over queries and its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def per_query_metrics(
    scores: Sequence[NDArray[np.floating]],
    relevance: Sequence[NDArray[np.integer]],
    *,
    recall_cutoffs: Sequence[int] = (1, 5, 10),
) -> dict[str, FloatArray]:
    """Return MRR@10, NDCG@10, MAP and Recall@k of every query.

    Ties count against the model: among passages of equal score the least relevant ranks first, so
    a model that scores everything alike scores worst instead of profiting from the order of the
    input.

    Args:
        scores: for each of N queries, the scores of its P passages, shape (P,); a passage with
            -inf was not retrieved: it has no rank, and counts as one that was not found.
        relevance: for each query, the grades of the same passages, shape (P,); 0 is irrelevant.
            NDCG's gain is the grade itself, as in trec_eval; the other metrics count grade >= 1.
        recall_cutoffs: the k of each Recall@k.

    Returns:
        float64 arrays of shape (N,), in [0, 1], under the keys "mrr@10", "ndcg@10", "map" and
        "recall@k", in this order.

    Raises:
        RerankerError: a query has no positive, its two arrays differ in length, or a score is NaN.
    """
    if len(scores) != len(relevance):
        raise RerankerError(
            f"{len(scores)} queries are scored and {len(relevance)} are judged - "
            "every query needs both - pass one array of each per query"
        )
    run: dict[str, dict[str, float]] = {}
    qrel: dict[str, dict[str, int]] = {}
    for i, (query_scores, grades) in enumerate(zip(scores, relevance, strict=True)):
        ranking = _pessimistic_ranking(query_scores, grades, query=i)
        # trec_eval sorts by a float32 score and then by document id. Whole numbers that fall
        # with the rank leave it nothing to round and no tie to break.
        passages = len(ranking)
        ranks = {
            str(p): float(passages - rank)
            for rank, p in enumerate(ranking)
            if query_scores[p] > -np.inf
        }
        run[str(i)] = ranks or {"": 0.0}  # a query without any is left out otherwise
        qrel[str(i)] = {str(p): int(grade) for p, grade in enumerate(grades)}
    names = {
        "mrr@10": "recip_rank",
        "ndcg@10": f"ndcg_cut_{RANK_CUTOFF}",
        "map": "map",
        **{f"recall@{k}": f"recall_{k}" for k in recall_cutoffs},
    }
    measured = pytrec_eval.RelevanceEvaluator(qrel, set(names.values())).evaluate(run)
    values = {
        ours: np.array([measured[query][theirs] for query in run], dtype=np.float64)
        for ours, theirs in names.items()
    }
    # trec_eval has no cut reciprocal rank: below rank 10 it is 0.
    values["mrr@10"][values["mrr@10"] < 1 / RANK_CUTOFF] = 0.0
    return values


def _pessimistic_ranking(
    scores: NDArray[np.floating], grades: NDArray[np.integer], *, query: int
) -> NDArray[np.intp]:
    """Return (P,) passage indices from best to worst; within a tie the lowest grade goes first."""
    scores, grades = np.asarray(scores), np.asarray(grades)
    if scores.shape != grades.shape or scores.ndim != 1:
        raise RerankerError(
            f"query {query} has scores of shape {scores.shape} and grades of shape "
            f"{grades.shape} - both must be (passages,) - pass one of each per passage"
        )
    if np.isnan(scores).any():
        raise RerankerError(
            f"query {query} has {int(np.isnan(scores).sum())} NaN score(s) - NaN has no rank - "
            "check the model's weights, or score in float32 instead of half precision"
        )
    if not (grades > 0).any():
        raise RerankerError(
            f"query {query} has no positive among its {len(grades)} passages - its metrics are "
            "undefined - give it a positive or leave it out"
        )
    return np.lexsort((grades, -scores))


def bootstrap_mean(
    values: FloatArray,
    *,
    seed: int = 0,
    samples: int = BOOTSTRAP_SAMPLES,
    bounds: tuple[float, float] = (-np.inf, np.inf),
) -> Estimate:
    """Return the mean of per-query values with its 95 % percentile bootstrap interval.

    Efron & Tibshirani, "An Introduction to the Bootstrap" (1993), section 13.3. Few values vary
    less in resamples than they do in truth, by sqrt((N - 1) / N), and their spread is itself an
    estimate: the interval is widened by both, the latter as Student's t is wider than the normal
    (Hesterberg, "What Teachers Should Know About the Bootstrap", https://arxiv.org/abs/1411.5279).

    Args:
        values: One value per query, shape (N,). A single one does not show their spread: its
            interval is all of ``bounds``.
        seed: Equal seeds and N draw equal resamples, so the figures of several metrics move
            together.
        samples: Resamples of N queries with replacement.
        bounds: What the mean can be; the interval ends there.

    Raises:
        RerankerError: There are no values.
    """
    values = np.asarray(values, dtype=np.float64)
    return bootstrap_statistic(values[:, None], _first, seed=seed, samples=samples, bounds=bounds)


def bootstrap_statistic(
    rows: FloatArray,
    statistic: Callable[[FloatArray], FloatArray],
    *,
    seed: int = 0,
    samples: int = BOOTSTRAP_SAMPLES,
    bounds: tuple[float, float] = (-np.inf, np.inf),
    reflected: bool = False,
) -> Estimate:
    """As ``bootstrap_mean``, of what is computed from the means of several values per query.

    Args:
        rows: D values per query, shape (N, D).
        statistic: Takes (..., D) means over queries and returns (...) values.
        bounds: What the statistic can be; the interval ends there.
        reflected: Use the basic interval, twice the estimate less the percentiles (Davison &
            Hinkley, "Bootstrap Methods and Their Application" (1997), section 5.2): of a statistic
            that is higher in resamples than in truth, as a sum of absolute values is.

    Raises:
        RerankerError: There are no queries.
    """
    count = len(rows)
    if not count:
        raise RerankerError("0 queries - a mean needs at least one - give a file with queries")
    found = float(statistic(rows.mean(axis=0)))
    if count < 2:
        return Estimate(found, *bounds)
    ends = bootstrap(
        (np.arange(count),),
        partial(_resampled, rows=rows, statistic=statistic),
        n_resamples=samples,
        batch=max(1, _BOOTSTRAP_BLOCK // count),
        confidence_level=CONFIDENCE,
        method="basic" if reflected else "percentile",
        random_state=np.random.default_rng(seed),
        vectorized=True,
    ).confidence_interval
    tail = (1 - CONFIDENCE) / 2
    wider = np.sqrt(count / (count - 1)) * stdtrit(count - 1, tail) / ndtri(tail)
    low, high = (np.clip(found + (end - found) * wider, *bounds) for end in (ends.low, ends.high))
    return Estimate(found, float(low), float(high))


def bootstrap_average(
    groups: Sequence[FloatArray],
    shares: Sequence[float],
    *,
    seed: int = 0,
    samples: int = BOOTSTRAP_SAMPLES,
    bounds: tuple[float, float] = (-np.inf, np.inf),
) -> Estimate:
    """As ``bootstrap_mean``, of the weighted average of several groups' means.

    Every group is resampled by itself (Davison & Hinkley, "Bootstrap Methods and Their
    Application" (1997), section 3.2); the degrees of freedom of Student's t are Welch's and
    Satterthwaite's.

    Args:
        groups: One value per query of each group, shape (N_g,).
        shares: Of each group's mean in the average.
    """
    counts = np.array([len(group) for group in groups])
    weights = np.array(shares, dtype=np.float64)
    means = np.array([group.mean() for group in groups])
    found = float(weights @ means)
    if counts.min() < 2:
        return Estimate(found, *bounds)
    # A resample of N varies less than N new queries do, by (N - 1) / N.
    spread = [
        mean + (group - mean) * np.sqrt(len(group) / (len(group) - 1))
        for group, mean in zip(groups, means, strict=True)
    ]
    variances = weights**2 * [group.var() for group in spread] / counts
    ends = bootstrap(
        spread,
        lambda *drawn, axis: sum(
            weight * group.mean(axis=axis) for weight, group in zip(weights, drawn, strict=True)
        ),
        n_resamples=samples,
        batch=max(1, _BOOTSTRAP_BLOCK // int(counts.sum())),
        confidence_level=CONFIDENCE,
        method="percentile",
        random_state=np.random.default_rng(seed),
        vectorized=True,
    ).confidence_interval
    tail = (1 - CONFIDENCE) / 2
    total = variances.sum()
    freedom = total**2 / (variances**2 / (counts - 1)).sum() if total else counts.sum() - 1
    wider = stdtrit(freedom, tail) / ndtri(tail)
    low, high = (np.clip(found + (end - found) * wider, *bounds) for end in (ends.low, ends.high))
    return Estimate(found, float(low), float(high))


def _first(means: FloatArray) -> FloatArray:
    return means[..., 0]


def _resampled(
    drawn: NDArray[np.integer],
    axis: int,
    *,
    rows: FloatArray,
    statistic: Callable[[FloatArray], FloatArray],
) -> FloatArray:
    """Return the statistic of (..., N) drawn queries; a column at a time, to save memory."""
    return statistic(np.stack([column[drawn].mean(axis=axis) for column in rows.T], axis=-1))


def bootstrap_difference(
    values: FloatArray,
    baseline: FloatArray,
    *,
    seed: int = 0,
    samples: int = BOOTSTRAP_SAMPLES,
) -> Estimate:
    """Return the mean of ``values - baseline`` over the same queries, with its 95 % interval.

    Resampling the differences keeps the pairing: what makes a query hard for both models cancels,
    so the interval is far narrower than the two separate intervals suggest.

    Args:
        values, baseline: per-query values of two models in the same query order, shape (N,).

    Raises:
        RerankerError: the shapes differ, or there are no values.
    """
    values, baseline = np.asarray(values), np.asarray(baseline)
    if values.shape != baseline.shape:
        raise RerankerError(
            f"{values.size} values against {baseline.size} - a paired difference needs the same "
            "queries in the same order - evaluate both models on the same file"
        )
    return bootstrap_mean(values - baseline, seed=seed, samples=samples)
