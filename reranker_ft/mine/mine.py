"""Mine hard negatives: passages that rank high for a query and do not answer it."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reranker_ft.data.examples import Example, ExampleFiles, text_key
from reranker_ft.data.files import existing_file, new_text_file, refuse_existing
from reranker_ft.data.lines import decode_line, parse_json, parsed_lines, refuse_unwritable
from reranker_ft.errors import ArgumentError, Problems
from reranker_ft.mine.retrieve import BM25, Ranking, RetrieverFactory
from reranker_ft.notebook import html_table
from reranker_ft.score.records import write_line

if TYPE_CHECKING:
    from reranker_ft.score.reranker import Reranker

# Queries whose candidates the guard scores together.
CHUNK_QUERIES = 512
# Random passages that the guard scores for a query: where its positives score low, hardly any
# passes, and a large pool would be scored to its end.
GUARDED_RANDOM = 1000
_POOL_LINE = 'a line of the pool is {"text": passage}'


@dataclass(frozen=True)
class MiningOptions:
    """Which of a query's ranked passages become its negatives.

    Attributes:
        ranks: Candidates are those from the first rank up to the second, which is excluded; the
            best passage has rank 0. The top ranks hold most unlabelled positives.
        negatives: Negatives per query.
        fill_random: Make up for missing negatives with random passages from below the range. With
            a reranker, at most ``GUARDED_RANDOM`` are tried.
        margin: With a reranker, a negative's score is at least this far below that of each of the
            query's positives, in logits.
        seed: Of the draw among the candidates; it depends on the seed and the line alone.
    """

    ranks: tuple[int, int] = (10, 210)
    negatives: int = 15
    fill_random: bool = True
    margin: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        first, end = self.ranks
        if not 0 <= first < end:
            raise ArgumentError(
                f"the ranks are {first}-{end} - they start at 0 and the second is greater - use "
                "for example 10-210"
            )
        if self.negatives < 1:
            raise ArgumentError(
                f"{self.negatives} negatives per query - a query needs at least one - use 1 or more"
            )
        if self.seed < 0:
            raise ArgumentError(f"seed is {self.seed} - seeds are not negative - use 0 or more")
        if not math.isfinite(self.margin):
            raise ArgumentError(f"margin is {self.margin} - it is in logits - use a finite number")


def parse_ranks(text: str) -> tuple[int, int]:
    """Return two ranks around a dash, as in "10-210".

    Raises:
        ArgumentError: The text is something else.
    """
    first, dash, end = text.partition("-")
    if not (dash and first.strip().isdecimal() and end.strip().isdecimal()):
        raise ArgumentError(
            f"the range of ranks is {text!r} - it is two numbers around a dash - write it like "
            "10-210"
        )
    return int(first), int(end)


@dataclass
class MiningReport:
    """What mining found.

    Attributes:
        queries: Lines written.
        pool: Distinct passages searched.
        mined: Negatives from the range of ranks.
        filled: Negatives drawn at random, where the range had too few.
        guarded: Candidates refused by the margin.
        short: Queries that still have fewer negatives than asked for.
        output: The file that was written.
    """

    queries: int = 0
    pool: int = 0
    mined: int = 0
    filled: int = 0
    guarded: int = 0
    short: int = 0
    output: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    def _repr_html_(self) -> str:
        return html_table([("mined", self.output), *list(asdict(self).items())[:-1]])


def read_pool(path: str | Path) -> Iterator[str]:
    """Return the passages of a candidate pool: .jsonl or .json with "text", else one per line.

    Raises:
        ArgumentError: There is no such file.
        DataError: Lines break the format; all are counted, the first ten are named.
    """
    path = existing_file(path)
    as_json = path.suffix in (".jsonl", ".json")
    problems = Problems()
    for _, _, passage in parsed_lines(path, partial(_pool_passage, as_json=as_json), problems):
        if passage is not None:
            yield passage
    problems.refuse()


def _pool_passage(line: bytes, as_json: bool) -> str:
    if not as_json:
        return decode_line(line, "a pool").strip()
    fields = parse_json(line, form="a pool", rule=_POOL_LINE)
    if not isinstance(fields, dict) or not isinstance(fields.get("text"), str):
        raise ValueError(f'no "text" - {_POOL_LINE} - add it')
    refuse_unwritable(line, fields)
    passage: str = fields["text"]
    return passage


def passages_of(examples: Sequence[Example]) -> Iterator[str]:
    """Return all positives and negatives of the examples, with repeats."""
    for example in examples:
        yield from example.pos
        yield from example.neg


def distinct(passages: Iterator[str]) -> list[str]:
    """Return the passages in order, without blank ones and repeats (white space may differ)."""
    seen: set[int] = set()
    pool: list[str] = []
    for passage in passages:
        key = text_key(passage)
        if passage.strip() and key not in seen:
            seen.add(key)
            pool.append(passage)
    return pool


@dataclass
class Candidates:
    """One query on its way to its negatives.

    Attributes:
        untried: Indices into the pool, in the order in which they are tried.
        ranked: How many of them, from the first, come from the range of ranks.
        ceiling: The highest score that a negative may have.
        tried: Those that were looked at.
        chosen: Positions in ``tried`` that became negatives.
    """

    example: Example
    untried: Iterator[int]
    ranked: int
    ceiling: float = math.inf
    tried: list[int] = field(default_factory=list)
    chosen: list[int] = field(default_factory=list)

    def next(self, negatives: int) -> range:
        """As many further positions as negatives are missing."""
        start = len(self.tried)
        self.tried += itertools.islice(self.untried, negatives - len(self.chosen))
        return range(start, len(self.tried))


def _random_order(random: np.random.Generator, count: int) -> Iterator[int]:
    """Yield 0 to count - 1 in random order, at the cost of those that are taken.

    Fisher and Yates's shuffle of an array of which only the places that changed are kept.
    """
    moved: dict[int, int] = {}
    for last in range(count - 1, -1, -1):
        place = int(random.integers(last + 1))
        yield moved.get(place, place)
        moved[place] = moved.pop(last, last)


class Miner:
    """Draws the negatives of queries from their rankings.

    Args:
        pool: Distinct passages.
        examples: All examples. What is a positive on one line is no negative on another line
            with the same query.
        options: Which negatives.
        reranker: Guards against false negatives; ``None`` trusts the ranks.
    """

    def __init__(
        self,
        pool: Sequence[str],
        examples: Sequence[Example],
        options: MiningOptions,
        *,
        reranker: Reranker | None = None,
    ) -> None:
        self.pool = pool
        self.options = options
        self.reranker = reranker
        self.report = MiningReport(pool=len(pool))
        # Texts by their 16-byte keys: the examples themselves stay on disk.
        self._forbidden: dict[int, set[int]] = {}
        for example in examples:
            query = text_key(example.query)
            self._forbidden.setdefault(query, {query}).update(map(text_key, example.pos))

    def mine(self, ranked: Iterator[tuple[Example, Ranking]]) -> Iterator[list[str]]:
        """Return the negatives of each example, in order."""
        numbered = enumerate(ranked)
        while chunk := list(itertools.islice(numbered, CHUNK_QUERIES)):
            queue = [self._candidates(example, ranking, line) for line, (example, ranking) in chunk]
            self._choose(queue)
            for candidates in queue:
                self._count(candidates)
                yield [self.pool[candidates.tried[place]] for place in candidates.chosen]

    def _candidates(self, example: Example, ranking: Ranking, line: int) -> Candidates:
        """Return what may become a negative: the range of ranks, then random passages.

        Walking a random order and taking what passes the guard draws from the safe candidates
        without scoring the others.
        """
        first, end = self.options.ranks
        forbidden = self._forbidden[text_key(example.query)]
        random = np.random.default_rng((self.options.seed, line))
        ranked = [int(i) for i in ranking[first:end] if text_key(self.pool[i]) not in forbidden]
        untried = (ranked[i] for i in random.permutation(len(ranked)))
        if not self.options.fill_random:
            return Candidates(example, untried, len(ranked))
        below = self._below(ranking[:end], forbidden, random)
        return Candidates(example, itertools.chain(untried, below), len(ranked))

    def _below(
        self, known: Ranking, forbidden: set[int], random: np.random.Generator
    ) -> Iterator[int]:
        """Return passages that are neither known nor forbidden, in random order."""
        best = set(known.tolist())
        usable = (
            i
            for i in _random_order(random, len(self.pool))
            if i not in best and text_key(self.pool[i]) not in forbidden
        )
        yield from itertools.islice(usable, None if self.reranker is None else GUARDED_RANDOM)

    def _choose(self, queue: Sequence[Candidates]) -> None:
        """Try candidates until each query has its negatives or nothing is left to try.

        The candidates of all queries are scored together, and only as many as are needed.
        """
        if self.reranker is not None:
            self._set_ceilings(queue, self.reranker)
        while True:
            fresh = [(row, place) for row in queue for place in row.next(self.options.negatives)]
            if not fresh:
                return
            for (row, place), score in zip(fresh, self._guard_scores(fresh), strict=True):
                if score <= row.ceiling:
                    row.chosen.append(place)

    def _set_ceilings(self, queue: Sequence[Candidates], reranker: Reranker) -> None:
        """Put each query's ceiling the margin below the worst of its positives."""
        owners = [(row, text) for row in queue for text in row.example.pos]
        scores = _example_scores(reranker, [(row.example, text) for row, text in owners])
        for (row, _), score in zip(owners, scores, strict=True):
            row.ceiling = min(row.ceiling, score - self.options.margin)

    def _guard_scores(self, fresh: Sequence[tuple[Candidates, int]]) -> list[float]:
        """Return the guard's scores of candidates; -inf, which passes, without a guard."""
        if self.reranker is None:
            return [-math.inf] * len(fresh)
        return _example_scores(
            self.reranker, [(row.example, self.pool[row.tried[place]]) for row, place in fresh]
        )

    def _count(self, candidates: Candidates) -> None:
        mined = sum(place < candidates.ranked for place in candidates.chosen)
        self.report.queries += 1
        self.report.mined += mined
        self.report.filled += len(candidates.chosen) - mined
        self.report.guarded += len(candidates.tried) - len(candidates.chosen)
        self.report.short += len(candidates.chosen) < self.options.negatives


def _example_scores(reranker: Reranker, passages: Sequence[tuple[Example, str]]) -> list[float]:
    """Score of passages for the queries of examples."""
    scores: list[float] = reranker.score_pairs(
        [
            reranker.instruct(example.query, text, example.prompt, example.passage_prompt)
            for example, text in passages
        ],
        normalize=False,
    ).tolist()
    return scores


def mine_file(
    input_file: str | Path,
    output_file: str | Path,
    options: MiningOptions | None = None,
    retriever: RetrieverFactory = BM25,
    *,
    candidate_pool: str | Path | None = None,
    reranker: Reranker | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> MiningReport:
    """Copy training data with mined "neg"; all other fields stay.

    "neg_scores" goes, as it belongs to the negatives that were there.

    Args:
        input_file: Lines of {"query", "pos"} and optionally "neg".
        output_file: The same lines with new negatives; it appears once it is complete.
        options: Which negatives.
        retriever: Makes what ranks the pool, from the pool.
        candidate_pool: Passages to choose from, as ``read_pool`` reads them; ``None`` takes all
            positives and negatives of the input.
        reranker: Guards against false negatives.

    Raises:
        ArgumentError: A file is missing, or the output exists and ``overwrite`` is false.
        DataError: Lines of the input or of the pool break the format.
    """
    options = options or MiningOptions()
    refuse_existing(output_file, overwrite=overwrite)
    examples = ExampleFiles([existing_file(input_file)], progress=progress)
    pool = distinct(read_pool(candidate_pool) if candidate_pool else passages_of(examples))
    if not pool:
        raise ArgumentError(f"{candidate_pool} has no passage - a pool has some - fill it")
    queries = [example.query for example in examples]
    rankings = retriever(pool).search(queries, options.ranks[1])
    miner = Miner(pool, examples, options, reranker=reranker)
    with (
        new_text_file(output_file, overwrite=overwrite) as output,
        Path(input_file).open("rb") as lines,
    ):
        # Two passes over the same lines, one behind the other: to mine, and to keep all fields.
        sources = (line for line in lines if line.strip())
        negatives = miner.mine(zip(examples, rankings, strict=True))
        for line, mined in zip(sources, negatives, strict=True):
            fields: dict[str, Any] = json.loads(line)
            fields.pop("neg_scores", None)
            write_line(output, {**fields, "neg": mined})
    miner.report.output = str(output_file)
    return miner.report
