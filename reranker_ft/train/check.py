"""Read training data once and report what training would refuse, repeat or cut."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from reranker_ft.data.examples import Example, data_files, parse_example
from reranker_ft.data.instructions import Instructions
from reranker_ft.data.lines import parsed_lines
from reranker_ft.errors import ArgumentError, Problems
from reranker_ft.notebook import html_table
from reranker_ft.progress import byte_bar

if TYPE_CHECKING:
    from reranker_ft.model.pairs import PairEncoder

# Lines tokenized together.
CHUNK_LINES = 256
PERCENTILES = (50, 90, 99, 100)
SHOWN_LINES = 3
# Counts whose first lines are named.
NAMED = (
    *("duplicate_queries", "duplicate_lines", "repeated_passages", "positives_among_negatives"),
    *("blank_negatives", "too_few_negatives", "without_negatives"),
)


@dataclass(frozen=True)
class LengthSummary:
    """Percentiles of token counts; ``p100`` is the longest."""

    p50: int
    p90: int
    p99: int
    p100: int

    @classmethod
    def of(cls, lengths: npt.NDArray[np.int64]) -> LengthSummary:
        """Summarise (N,) lengths; zeros if there are none."""
        values = np.percentile(lengths, PERCENTILES, method="higher") if len(lengths) else [0] * 4
        return cls(*map(int, values))


@dataclass(frozen=True)
class CutSummary:
    """How much of the pairs ``max_length`` cuts.

    Attributes:
        max_length: Maximum tokens of a pair, special tokens included; at most ``positions``.
        positions: How many tokens the model has positions for; ``None`` if no limit is known.
        query_tokens, passage_tokens, pair_tokens: Lengths before cutting; those of pairs include
            their special tokens.
        cut_pairs: How many of the ``pairs`` lose tokens.
        lost_tokens: Share of all tokens that is lost, 0 to 1.
    """

    max_length: int
    positions: int | None
    query_tokens: LengthSummary
    passage_tokens: LengthSummary
    pair_tokens: LengthSummary
    pairs: int
    cut_pairs: int
    lost_tokens: float


@dataclass(frozen=True)
class CheckReport:
    """What ``check_data`` found.

    Attributes:
        problems: Lines that break the format (training refuses them); the first ten are in
            ``shown_problems``, with file and line.
        duplicate_queries: Lines whose query is on an earlier line too.
        duplicate_lines: Lines that equal an earlier line in query, positives and negatives.
        repeated_passages: Passages that are in the ``pos`` or in the ``neg`` of a line twice.
        positives_among_negatives: Lines with a passage in both lists: the model is taught both.
        blank_negatives: Negatives without text.
        too_few_negatives: Lines with fewer negatives than a group needs; training repeats these.
        without_negatives: Lines with no negatives; training refuses them unless the group is the
            positive alone (``train_group_size`` 1) and the batch lends negatives.
        with_scores: Lines with teacher scores for all passages.
        first_lines: By the name of a count, ``file:line`` of the first three lines it counts.
        tokens: ``None`` if no tokenizer was given.
    """

    files: int
    lines: int
    examples: int
    problems: int
    shown_problems: tuple[str, ...]
    positives: int
    negatives: int
    train_group_size: int
    duplicate_queries: int
    duplicate_lines: int
    repeated_passages: int
    positives_among_negatives: int
    blank_negatives: int
    too_few_negatives: int
    without_negatives: int
    with_scores: int
    first_lines: dict[str, tuple[str, ...]]
    tokens: CutSummary | None

    @property
    def trainable(self) -> bool:
        """Whether training takes the data as they are."""
        lacking = self.without_negatives if self.train_group_size > 1 else 0
        return not self.problems and self.examples > 0 and not lacking

    def to_dict(self) -> dict[str, Any]:
        """Return all fields and ``trainable``, for JSON."""
        return {**asdict(self), "trainable": self.trainable}

    def _repr_html_(self) -> str:
        counts = [(name, value) for name, value in asdict(self).items() if type(value) is int]
        caption = "training takes these data" if self.trainable else "training refuses these data"
        return html_table([("training data", ""), *counts], caption)


def model_positions(name_or_path: str) -> int | None:
    """Return the longest input, in tokens, that a model has positions for, from its config alone.

    Returns:
        ``None`` where there is no limit, or no config beside the tokenizer.

    Raises:
        ModelError: The config is not that of a classifier.
    """
    if Path(name_or_path).is_dir() and not (Path(name_or_path) / "config.json").is_file():
        return None
    import torch  # noqa: PLC0415 - seconds to import, and counting lines does without it
    from transformers import AutoConfig, AutoModelForSequenceClassification  # noqa: PLC0415

    from reranker_ft.model.load import model_errors  # noqa: PLC0415
    from reranker_ft.model.scoring import position_limit  # noqa: PLC0415

    with model_errors(name_or_path), torch.device("meta"):
        config = AutoConfig.from_pretrained(name_or_path)
        model = AutoModelForSequenceClassification.from_config(config)
    return position_limit(model)


def check_data(
    paths: Sequence[str | Path],
    *,
    model_name_or_path: str | None = None,
    tokenizer: Any = None,
    positions: int | None = None,
    max_length: int = 512,
    query_max_length: int | None = None,
    passage_max_length: int | None = None,
    train_group_size: int = 8,
    instructions: Instructions | None = None,
    progress: bool = False,
) -> CheckReport:
    """Read every line of files or folders, once, a few hundred at a time.

    Memory is 32 bytes per line, for the digests that find duplicates, and 12 bytes per passage, for
    lengths.

    Args:
        paths: Files or folders.
        model_name_or_path: Of a model that gives ``tokenizer`` and ``positions``.
        tokenizer: A transformers tokenizer, for the token lengths; ``None`` leaves them out.
        positions: How many tokens the model has positions for: training cuts there, whatever
            ``max_length`` is.
        max_length, query_max_length, passage_max_length: Maximum tokens of a pair, its query and
            its passage in training.
        train_group_size: G; a group needs G - 1 negatives.
        instructions: Put around the texts before their tokens are counted.
        progress: Show a progress bar in bytes.

    Raises:
        ArgumentError: A path does not exist, or the lengths leave no room for a pair.
    """
    for name, value in (
        ("max_length", max_length),
        ("query_max_length", query_max_length),
        ("passage_max_length", passage_max_length),
    ):
        if value is not None and value < 1:
            raise ArgumentError(f"{name} is {value} - it counts tokens - use 1 or more")
    if model_name_or_path is not None:
        from reranker_ft.model.load import load_tokenizer  # noqa: PLC0415 - imports torch

        tokenizer = load_tokenizer(model_name_or_path)
        positions = model_positions(model_name_or_path)
    files = data_files(paths)
    counts = _Counts(train_group_size)
    lengths = None
    if tokenizer is not None:
        from reranker_ft.model.pairs import PairEncoder  # noqa: PLC0415 - imports torch

        encoder = PairEncoder(
            tokenizer,
            max_length=min(max_length, positions or max_length),
            query_max_length=query_max_length,
            passage_max_length=passage_max_length,
        )
        lengths = _Lengths(encoder, instructions or Instructions(), positions)
    with byte_bar(files, "checking", shown=progress) as bar:
        examples = counts.read(files, bar)
        while chunk := list(islice(examples, CHUNK_LINES)):
            if lengths is not None:
                lengths.add(chunk)
    return CheckReport(
        files=len(files),
        train_group_size=train_group_size,
        tokens=None if lengths is None else lengths.summary(),
        **counts.totals(),
    )


class _Counts:
    """Counts over the lines, kept while they pass."""

    def __init__(self, group_size: int) -> None:
        self.group_size = group_size
        self.lines = 0
        self.problems = Problems()
        self.first_lines: dict[str, tuple[str, ...]] = {}
        self.sums = dict.fromkeys(
            (
                "examples",
                "positives",
                "negatives",
                "duplicate_queries",
                "duplicate_lines",
                "repeated_passages",
                "positives_among_negatives",
                "blank_negatives",
                "too_few_negatives",
                "without_negatives",
                "with_scores",
            ),
            0,
        )
        self._queries: set[bytes] = set()
        self._lines: set[bytes] = set()

    def read(self, files: Iterable[Path], bar: tqdm[Any]) -> Iterator[Example]:
        """Yield the examples of all files, counted."""
        for file in files:
            for number, _, example in parsed_lines(file, parse_example, self.problems, bar):
                self.lines += 1
                if example is not None:
                    self._count(example, f"{file}:{number}")
                    yield example

    def _count(self, example: Example, place: str) -> None:
        positives, negatives = set(example.pos), set(example.neg)
        passages = len(example.pos) + len(example.neg)
        found = {
            "examples": True,
            "positives": len(example.pos),
            "negatives": len(example.neg),
            "duplicate_queries": _seen(self._queries, example.query),
            "duplicate_lines": _seen(
                self._lines, "\0".join((example.query, *example.pos, "\1", *example.neg))
            ),
            "repeated_passages": passages - len(positives) - len(negatives),
            "positives_among_negatives": bool(positives & negatives),
            "blank_negatives": sum(not text.strip() for text in example.neg),
            "too_few_negatives": len(example.neg) < self.group_size - 1,
            "without_negatives": not example.neg,
            "with_scores": None not in (example.pos_scores, example.neg_scores),
        }
        for name, value in found.items():
            self.sums[name] += int(value)
            places = self.first_lines.setdefault(name, ())
            if value and len(places) < SHOWN_LINES:
                self.first_lines[name] = (*places, place)

    def totals(self) -> dict[str, Any]:
        return {
            "lines": self.lines,
            "problems": self.problems.count,
            "shown_problems": tuple(self.problems.shown),
            "first_lines": {name: self.first_lines.get(name, ()) for name in NAMED},
            **self.sums,
        }


def _seen(digests: set[bytes], text: str) -> bool:
    """Whether the text was seen before, in 16 bytes per text; from now on it was."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    known = digest in digests
    digests.add(digest)
    return known


class _Lengths:
    """Token lengths of queries, passages and pairs, before and after cutting."""

    def __init__(
        self, encoder: PairEncoder, instructions: Instructions, positions: int | None
    ) -> None:
        self.encoder = encoder
        self.instructions = instructions
        self.positions = positions
        self.queries: list[npt.NDArray[np.int64]] = []
        self.passages: list[npt.NDArray[np.int64]] = []
        self.pairs: list[npt.NDArray[np.int64]] = []
        self.cut_pairs = 0
        self.lost_tokens = 0

    def add(self, examples: Sequence[Example]) -> None:
        """Tokenize the texts of some examples in one batch."""
        queries = [self.instructions.of_query(e.query, e.prompt) for e in examples]
        passages = [
            self.instructions.of_passage(text, e.passage_prompt)
            for e in examples
            for text in (*e.pos, *e.neg)
        ]
        counts = [len(e.pos) + len(e.neg) for e in examples]
        query_lengths = self.encoder.text_lengths(queries)  # (Q,)
        passage_lengths = self.encoder.text_lengths(passages)  # (P,)
        query_of_pair = np.repeat(query_lengths, counts)  # (P,)
        special = len(self.encoder.template)
        whole = query_of_pair + passage_lengths + special
        kept = self.encoder.cut_lengths(query_of_pair, passage_lengths)
        self.queries.append(query_lengths)
        self.passages.append(passage_lengths)
        self.pairs.append(whole)
        self.cut_pairs += int((kept < whole).sum())
        self.lost_tokens += int((whole - kept).sum())

    def summary(self) -> CutSummary:
        queries, passages, pairs = (
            np.concatenate(parts) if parts else np.zeros(0, np.int64)
            for parts in (self.queries, self.passages, self.pairs)
        )
        return CutSummary(
            max_length=self.encoder.max_length,
            positions=self.positions,
            query_tokens=LengthSummary.of(queries),
            passage_tokens=LengthSummary.of(passages),
            pair_tokens=LengthSummary.of(pairs),
            pairs=len(pairs),
            cut_pairs=self.cut_pairs,
            lost_tokens=self.lost_tokens / max(1, int(pairs.sum())),
        )
