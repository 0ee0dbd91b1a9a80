"""Rank what the tasks of mteb rank: its reranking tasks, and retrieval tasks after a first stage.

mteb (https://github.com/embeddings-benchmark/mteb) loads the tasks; scores, metrics and intervals
are those of ``reranker-ft evaluate``.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

from reranker_ft.errors import ArgumentError, DataError, one_line
from reranker_ft.evaluate.metrics import FloatArray, per_query_metrics
from reranker_ft.mine.retrieve import BM25
from reranker_ft.score.reranker import Reranker

FIRST_STAGE = "BM25 (first stage)"
CANDIDATES = 100
"""Of a query, from the first stage, where the task names none."""


class NoSuchBenchmarkError(ArgumentError):
    """mteb has nothing of this name."""


@dataclass(frozen=True)
class BenchmarkExample:
    """A query of a task with passages that answer it, the best first, and some that do not.

    Attributes:
        place: Task and key of the query, for messages.
    """

    query: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...]
    place: str


@dataclass(frozen=True)
class RankedTask:
    """One split of a task, as pairs to score.

    Attributes:
        name: Of the task, with language and split where it has several; ``task`` is without them.
        queries: Text by key.
        pairs: Each query with each of its candidates, one query after the other.
        grades: By query, the relevance of its candidates, shape (P,).
        missed: By query, that of relevant passages that are no candidates: they count as not
            found, as in mteb.
        missed_texts: By query, these passages.
        first_stage: By query, the candidates' scores there, which fall; ``None`` where the task
            itself names the candidates, which have no order then.
    """

    name: str
    task: str
    queries: Mapping[str, str]
    pairs: list[tuple[str, str]]
    grades: list[npt.NDArray[np.int64]]
    missed: list[npt.NDArray[np.int64]]
    missed_texts: list[list[str]]
    first_stage: list[FloatArray] | None

    def measure(self, reranker: Reranker, progress: str = "") -> dict[str, FloatArray]:
        """Return the metrics of every query with a reranker's scores."""
        pairs = [reranker.instruct(query, text) for query, text in self.pairs]
        scores = reranker.score_pairs(pairs, normalize=False, progress=bool(progress)).numpy()
        ends = np.cumsum([len(grades) for grades in self.grades])[:-1]
        return self._metrics(np.split(scores.astype(np.float64), ends))

    def measure_first_stage(self) -> dict[str, FloatArray] | None:
        """Return the metrics of every query by the first stage alone; ``None`` without one."""
        return None if self.first_stage is None else self._metrics(self.first_stage)

    def examples(self, negatives: int, seed: int) -> Iterator[BenchmarkExample]:
        """Yield the queries as examples to learn or to measure a loss from; those that lack a
        positive with a text are left out.

        Args:
            negatives: At most so many candidates that are not relevant: the first of the first
                stage, or a draw by ``seed`` where the candidates have no order.
        """
        ends = list(accumulate(map(len, self.grades)))
        for place, (key, query) in enumerate(self.queries.items()):
            texts = [
                text for _, text in self.pairs[ends[place] - len(self.grades[place]) : ends[place]]
            ]
            candidates = list(zip(self.grades[place].tolist(), texts, strict=True))
            missed = zip(self.missed[place].tolist(), self.missed_texts[place], strict=True)
            best_first = sorted([*candidates, *missed], key=lambda found: -found[0])
            positives = dict.fromkeys(text for grade, text in best_first if grade > 0 and text)
            others = dict.fromkeys(text for grade, text in candidates if grade == 0 and text)
            rest = [text for text in others if text not in positives]
            if self.first_stage is None:
                random.Random(f"{seed} {key}").shuffle(rest)
            if query and positives:
                place_name = f"{self.name} query {key}"
                yield BenchmarkExample(query, tuple(positives), tuple(rest[:negatives]), place_name)

    def _metrics(self, scores: Sequence[FloatArray]) -> dict[str, FloatArray]:
        lost = [np.full(len(missed), -np.inf) for missed in self.missed]
        rows = [np.concatenate(parts) for parts in zip(scores, lost, strict=True)]
        judged = [np.concatenate(parts) for parts in zip(self.grades, self.missed, strict=True)]
        return per_query_metrics(rows, judged)


def benchmark_examples(
    benchmark: Any, *, max_queries: int, negatives: int, seed: int = 0, progress: bool = False
) -> list[BenchmarkExample]:
    """Draw examples from the tasks of a benchmark of mteb.

    Args:
        benchmark: As for ``load_benchmark``, which says what it raises.
        max_queries: At most so many, drawn from all tasks together by ``seed``.
        negatives: At most so many of each query, see ``RankedTask.examples``.

    Raises:
        DataError: No query has a passage that answers it.
    """
    tasks = load_benchmark(benchmark, max_queries=max_queries, seed=seed, progress=progress)
    found = [example for task in tasks for example in task.examples(negatives, seed)]
    if not found:
        raise DataError(
            [f"{tasks[0].name} has no query with a relevant text - there is nothing to measure"]
        )
    return random.Random(seed).sample(found, min(max_queries, len(found)))


def load_benchmark(
    benchmark: Any,
    *,
    max_queries: int | None = None,
    seed: int | None = None,
    progress: bool = False,
) -> list[RankedTask]:
    """Load the tasks of a benchmark of mteb.

    Args:
        benchmark: Name of a benchmark (``NanoBEIR``) or of a task; or a task of mteb's classes.
        max_queries: Only the first queries of each.
        seed: Draw these queries by it instead.
        progress: Show progress bars.

    Raises:
        NoSuchBenchmarkError: mteb has nothing of this name.
        ArgumentError: What it has ranks no texts.
        DataError: A task cannot be loaded, such as without a connection.
    """
    loaded = []
    for task in _tasks(benchmark):
        try:
            task.load_data()
            task.convert_v1_dataset_format_to_v2(num_proc=None)
        except Exception as error:  # the Hub's clients and datasets have many types
            raise DataError(
                [
                    f"{task.metadata.name} does not load ({one_line(error)[:300]}) - tasks come "
                    "from the Hub - look at the connection"
                ]
            ) from error
        several = len(task.dataset) > 1 or any(len(splits) > 1 for splits in task.dataset.values())
        for subset, splits in task.dataset.items():
            for split, data in splits.items():
                name = (
                    f"{task.metadata.name} ({subset}, {split})"
                    if several
                    else str(task.metadata.name)
                )
                loaded.append(_ranked(name, task, data, (max_queries, seed), progress))
    return loaded


def _tasks(benchmark: Any) -> list[Any]:
    import mteb  # noqa: PLC0415 - optional, and ten seconds to import
    from mteb.abstasks import AbsTaskRetrieval  # noqa: PLC0415

    tasks = [benchmark]
    if isinstance(benchmark, str):
        try:
            tasks = list(mteb.get_benchmark(benchmark))
        except (KeyError, ValueError):
            try:
                tasks = [mteb.get_task(benchmark)]
            except (KeyError, ValueError) as error:
                raise NoSuchBenchmarkError(
                    f"mteb has no benchmark or task {benchmark!r} ({one_line(error)[:200]}) - its "
                    "names are those of the leaderboard, such as NanoBEIR - correct it"
                ) from None
    for task in tasks:
        if not isinstance(task, AbsTaskRetrieval):
            raise ArgumentError(
                f"{task.metadata.name} is a task of type {task.metadata.type} - a reranker ranks "
                "the passages of queries - name a reranking or retrieval task"
            )
    return tasks


def _ranked(
    name: str,
    task: Any,
    data: Mapping[str, Any],
    taken: tuple[int | None, int | None],
    progress: bool,
) -> RankedTask:
    """Return one split as pairs.

    Args:
        taken: How many queries, and the seed that draws them; without a seed they are the first.
    """
    corpus = {row["id"]: _text(name, row) for row in data["corpus"]}
    judged = {
        query: {str(key): int(grade) for key, grade in grades.items()}
        for query, grades in data["relevant_docs"].items()
        if any(grade > 0 for grade in grades.values())
    }
    rows = {row["id"]: row for row in data["queries"] if row["id"] in judged}
    queries = {key: _text(name, rows[key]) for key in _taken(list(rows), *taken)}
    first_stage: list[FloatArray] | None = None
    if data["top_ranked"]:
        candidates = [list(dict.fromkeys(data["top_ranked"].get(key, ()))) for key in queries]
    else:
        found = list(_searched(corpus, list(queries.values()), progress))
        candidates = [keys for keys, _ in found]
        first_stage = [scores for _, scores in found]
    grades, missed, missed_texts, pairs = [], [], [], []
    for place, (key, query) in enumerate(queries.items()):
        kept = [i for i, passage in enumerate(candidates[place]) if passage in corpus]
        if task.ignore_identical_ids:
            kept = [i for i in kept if candidates[place][i] != key]
        passages = [candidates[place][i] for i in kept]
        if first_stage is not None:
            first_stage[place] = first_stage[place][kept]
        relevant = judged[key]
        others = sorted(set(relevant) - set(passages))
        pairs += [(query, corpus[passage]) for passage in passages]
        grades.append(_whole([relevant.get(passage, 0) for passage in passages]))
        missed.append(_whole(relevant[passage] for passage in others))
        missed_texts.append([corpus.get(passage, "") for passage in others])
    if not pairs:
        raise DataError([f"{name} has no query with candidates - there is nothing to rank"])
    return RankedTask(
        name, str(task.metadata.name), queries, pairs, grades, missed, missed_texts, first_stage
    )


def _taken(keys: list[str], count: int | None, seed: int | None) -> list[str]:
    if seed is None:
        return keys[:count]
    return random.Random(seed).sample(sorted(keys), min(len(keys), count or len(keys)))


def _searched(
    corpus: Mapping[str, str], queries: Sequence[str], progress: bool
) -> Iterator[tuple[list[str], FloatArray]]:
    """Yield each query's first passages by BM25, and scores that fall with the rank."""
    keys = list(corpus)
    index = BM25(list(corpus.values()), progress=progress)
    for ranking in index.search(queries, CANDIDATES):
        yield [keys[i] for i in ranking], -np.arange(len(ranking), dtype=np.float64)


def _whole(grades: Any) -> npt.NDArray[np.int64]:
    return np.maximum(np.array(list(grades), dtype=np.int64), 0)


def _text(name: str, row: Mapping[str, Any]) -> str:
    """Return a query with its instruction, or a passage with its title, as mteb joins them."""
    parts = [row.get("title"), row.get("text"), row.get("instruction")]
    if not isinstance(row.get("text"), str):
        raise ArgumentError(
            f"{name} has queries or passages that are not texts - a reranker reads texts - name "
            "another task"
        )
    return " ".join(part for part in parts if part).strip()
