"""Compare several models on the same queries, and what each gains over the first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from reranker_ft.data.examples import Example, ExampleFiles
from reranker_ft.errors import ArgumentError
from reranker_ft.evaluate.metrics import (
    METRIC_BOUNDS,
    Estimate,
    FloatArray,
    bootstrap_average,
    bootstrap_difference,
    bootstrap_mean,
    per_query_metrics,
)
from reranker_ft.evaluate.ranking import RankingSet
from reranker_ft.notebook import html_table
from reranker_ft.score.reranker import Reranker


@dataclass(frozen=True)
class Result:
    """One model on one data set.

    Attributes:
        model, data: As they were named.
        per_query: Values of shape (N,) by metric, in the order of the file; for an average over
            tasks, those of one task after the other.
        means: Mean and 95 % interval by metric.
        differences: Mean and 95 % interval of the paired difference to the first model, by metric;
            ``None`` for the first model.
    """

    model: str
    data: str
    per_query: Mapping[str, FloatArray]
    means: Mapping[str, Estimate]
    differences: Mapping[str, Estimate] | None

    def to_dict(self) -> dict[str, Any]:
        differences = self.differences or {}
        return {
            "model": self.model,
            "data": self.data,
            "queries": len(next(iter(self.per_query.values()))),
            "metrics": {name: mean.to_dict() for name, mean in self.means.items()},
            "difference_to_first": {
                name: difference.to_dict() for name, difference in differences.items()
            }
            or None,
        }


@dataclass(frozen=True)
class Comparison:
    """Models on data sets: ``results`` by data set, then by model."""

    results: tuple[Result, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"results": [result.to_dict() for result in self.results]}

    def _repr_html_(self) -> str:
        tables = []
        for data in dict.fromkeys(result.data for result in self.results):
            rows = [result for result in self.results if result.data == data]
            names = list(rows[0].means)
            cells: list[list[str]] = [["", *names]]
            for row in rows:
                cells.append([row.model, *(_shown(row.means[name]) for name in names)])
                if row.differences is not None:
                    gains = (_shown(row.differences[name], signed=True) for name in names)
                    cells.append(["less the first", *gains])
            queries = len(next(iter(rows[0].per_query.values())))
            tables.append(html_table(cells, f"{data}, {queries} queries, 95 % intervals"))
        return "".join(tables)


def _shown(value: Estimate, *, signed: bool = False) -> str:
    sign = "+" if signed else ""
    return f"{value.mean:{sign}.3f} [{value.low:{sign}.3f}, {value.high:{sign}.3f}]"


Measurement = Callable[[Reranker, str], dict[str, FloatArray]]
"""Takes a reranker and the label of its progress bar (empty for none); gives (N,) per metric."""


def compare(
    models: Sequence[str],
    data: Sequence[str | Path],
    *,
    max_queries: int | None = None,
    reranker_options: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> list[Result]:
    """Rank the passages of every query with every model.

    One model is in memory at a time.

    Args:
        models: Folders or Hub ids; differences are to the first.
        data: Files or folders of {"query", "pos", "neg"}; each is a data set.
        max_queries: Only the first queries of each data set.
        reranker_options: Arguments of Reranker.

    Returns:
        Results by data set, then by model, in the given order.

    Raises:
        ArgumentError: A name comes twice, or ``max_queries`` is below 1.
        DataError, ModelError: Something does not load.
    """
    _refuse_repeated([str(path) for path in data])
    if max_queries is not None and max_queries < 1:
        raise ArgumentError(f"max_queries is {max_queries} - it counts queries - use 1 or more")
    sets: dict[str, Measurement] = {
        str(path): _of_examples(ExampleFiles([path], negatives_required=True)[:max_queries])
        for path in data
    }
    return compare_on(models, sets, reranker_options=reranker_options, progress=progress)


def compare_on(
    models: Sequence[str],
    sets: Mapping[str, Measurement],
    *,
    beside: Mapping[str, tuple[str, dict[str, FloatArray]]] | None = None,
    reranker_options: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> list[Result]:
    """As ``compare``, on data sets that measure a reranker themselves.

    Args:
        sets: By name.
        beside: By name of a data set, what else ranked its queries, and its metrics.
    """
    _refuse_repeated(models)
    measured: dict[tuple[str, str], dict[str, FloatArray]] = {}
    for model in models:
        reranker = Reranker(model, **(reranker_options or {}))
        for name, measurement in sets.items():
            label = f"{model} on {name}" if progress else ""
            measured[model, name] = measurement(reranker, label)
    results = []
    for name in sets:
        first = measured[models[0], name]
        for model in models:
            results.append(_result(model, name, measured[model, name], first, model == models[0]))
        if beside and name in beside:
            other, values = beside[name]
            results.append(_result(other, name, values, first, False))
    return results


def average_over_tasks(results: Sequence[Result], tasks: Mapping[str, str]) -> list[Result]:
    """Return each model's average over tasks, which all count alike, however many their queries.

    Within a task its languages and splits count alike, as in mteb.

    Args:
        results: Of ``compare_on``.
        tasks: The task of every data set.

    Returns:
        A result by model, of those that ranked all of them; none if there is only one task.
    """
    names = list(tasks.values())
    if len(set(names)) < 2:
        return []
    shares = [1 / (len(set(names)) * names.count(name)) for name in names]
    averages: list[Result] = []
    for model in dict.fromkeys(result.model for result in results):
        rows = {result.data: result for result in results if result.model == model}
        if set(rows) != set(tasks):
            continue
        values = {
            metric: [rows[data].per_query[metric] for data in tasks]
            for metric in rows[next(iter(tasks))].per_query
        }
        average = partial(bootstrap_average, shares=shares)
        first = averages[0].per_query if averages else None
        ends = np.cumsum([len(group) for group in next(iter(values.values()))])[:-1]
        differences = {
            metric: average(
                [
                    own - other
                    for own, other in zip(groups, np.split(first[metric], ends), strict=True)
                ]
            )
            for metric, groups in values.items()
            if first is not None
        }
        averages.append(
            Result(
                model,
                f"average over {len(set(names))} tasks",
                {metric: np.concatenate(groups) for metric, groups in values.items()},
                {
                    metric: average(groups, bounds=METRIC_BOUNDS)
                    for metric, groups in values.items()
                },
                differences or None,
            )
        )
    return averages


def _refuse_repeated(names: Sequence[str]) -> None:
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
        raise ArgumentError(
            f"{', '.join(twice)} is given more than once - each is compared once - drop one"
        )


def _of_examples(examples: Sequence[Example]) -> Measurement:
    return lambda reranker, label: measure(reranker, examples, progress=label)


def measure(
    reranker: Reranker, examples: Sequence[Example], *, progress: str = ""
) -> dict[str, FloatArray]:
    """Return per-query metrics of a reranker, as training measures them.

    Args:
        progress: Label of a progress bar; none is shown if empty.
    """
    return per_query_metrics(*scored_queries(reranker, examples, progress=progress))


def scored_queries(
    reranker: Reranker, examples: Sequence[Example], *, progress: str = ""
) -> tuple[list[npt.NDArray[np.float32]], list[npt.NDArray[np.int64]]]:
    """Return the raw scores of each query's passages, shape (P,), and their relevance, 0 or 1.

    Args:
        progress: Label of a progress bar; none is shown if empty.
    """
    encoder = reranker.encoder()
    ranking = RankingSet(examples, encoder, reranker.instructions)
    score = partial(
        reranker.score_encodings,
        max_tokens=reranker.token_budget(encoder.max_length),
        progress=progress or False,
    )
    return ranking.scores(score), ranking.relevance


def _result(
    model: str,
    data: str,
    values: dict[str, FloatArray],
    baseline: dict[str, FloatArray],
    is_baseline: bool,
) -> Result:
    differences = {
        name: bootstrap_difference(values[name], baseline[name])
        for name in (() if is_baseline else values)
    }
    means = {
        name: bootstrap_mean(per_query, bounds=METRIC_BOUNDS) for name, per_query in values.items()
    }
    return Result(model, data, values, means, differences or None)
