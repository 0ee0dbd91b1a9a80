"""General text without labels: read, and made into examples for comparing a mix with its base.

There are no right answers in it, so the base is the teacher: see :mod:`cocktail.measure.agreement`.
"""

from __future__ import annotations

import json
import random
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from cocktail.errors import CocktailError, counted
from cocktail.measure.tasks.examples import (
    ExampleError,
    RankedExample,
    WrittenExample,
    read_text,
    surrogate_problem,
)

TextData: TypeAlias = str | Path | Sequence[str | Mapping[str, Any]]
"""A file, or its lines: passages, or dictionaries with ``text``, ``query`` or both."""

MOST = 100
"""Queries (texts, for models that generate) to draw from a longer file."""
CANDIDATES = 8
"""Passages that each query ranks."""
_FEWEST_CHARACTERS = 20
"""The fewest characters of a sentence that becomes a query."""
_SENTENCE = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])\s*")
_WORD = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff\u0e00-\u0e7f]|[^\W\u3040-\u30ff\u3400-\u9fff\u0e00-\u0e7f]+"
)


@dataclass(frozen=True)
class GeneralText:
    """Texts, each with the place it came from."""

    queries: tuple[tuple[str, str], ...]
    passages: tuple[tuple[str, str], ...]


def read_general(data: TextData) -> GeneralText:
    """Read passages, one per line, or JSONL lines with ``text`` and/or ``query``.

    A file whose first line is a JSON object is JSONL. Duplicates are read once.

    Raises:
        ExampleError: the file cannot be read, is empty, or has a line that is neither.
    """
    queries: dict[str, str] = {}
    passages: dict[str, str] = {}
    for place, row in _rows(data):
        if isinstance(row, str):
            _put(passages, row, "the line", place)
            continue
        found = [name for name in ("query", "text") if name in row]
        if not found:
            names = ", ".join(map(repr, row)) or "no column"
            raise ExampleError(
                f"{place}: has neither 'text' nor 'query' (it has {names}) - general text is "
                "passages and questions without labels - name the columns so (labelled examples "
                "are for --retain)"
            )
        for name in found:
            _put(queries if name == "query" else passages, row[name], repr(name), place)
    if not (queries or passages):
        where = data if isinstance(data, str | Path) else "the general text"
        raise ExampleError(
            f"{where}: holds no text - some is needed, one passage per line - add it"
        )
    return GeneralText(tuple(queries.items()), tuple(passages.items()))


def ranked_from(text: GeneralText, seed: int) -> list[RankedExample]:
    """Queries with the passages that BM25 finds for them, in no meaningful order.

    Without queries, sentences from passages serve as queries; the passage that one comes from
    is a candidate without it, as in the inverse cloze task (Lee, Chang & Toutanova, "Latent
    Retrieval for Weakly Supervised Open Domain Question Answering", https://arxiv.org/abs/1906.00300).

    Returns:
        At most ``MOST`` examples whose ``passages`` are candidates; none is a positive.

    Raises:
        ExampleError: there are too few passages, or nothing to ask.
        CocktailError: bm25s is not installed.
    """
    passages = [passage for passage, _ in text.passages]
    if len(passages) < 3:
        raise ExampleError(
            f"the general text has {counted(len(passages), 'distinct passage')} - queries rank "
            "some against each other - give 3 or more (dozens are better), one per line"
        )
    asked = [(query, place, None) for query, place in text.queries] or _cloze(text, seed)
    if not asked:
        raise ExampleError(
            "the general text has no query, and no passage of two sentences to draw one from - "
            'rankings need queries - add lines {"query": ...}'
        )
    drawn = random.Random(seed).sample(asked, min(MOST, len(asked)))
    found = _nearest(passages, [query for query, _, _ in drawn])
    made = []
    for (query, place, own), near in zip(drawn, found, strict=True):
        candidates = [passages[i] for i in near if own is None or i != own[0]]
        if own is not None:
            candidates = [own[1], *candidates]
        first, *others = dict.fromkeys(candidates[:CANDIDATES])
        made.append(RankedExample(query, (first,), tuple(others), place))
    return made


def written_from(text: GeneralText, seed: int, *, reads: bool) -> list[WrittenExample]:
    """At most ``MOST`` texts to generate.

    Args:
        reads: whether an encoder reads the first half; otherwise all is generated, from the first
            word.
    """
    texts = [*text.passages, *text.queries]
    drawn = random.Random(seed).sample(texts, min(MOST, len(texts)))
    if not reads:
        return [WrittenExample("", words, place) for words, place in drawn]
    halves = [(words, len(words) // 2, place) for words, place in drawn]
    return [WrittenExample(words[:half], words[half:], place) for words, half, place in halves]


def _rows(data: TextData) -> list[tuple[str, str | Mapping[str, Any]]]:
    if not isinstance(data, str | Path):
        rows = list(data)
        for number, row in enumerate(rows, start=1):
            if not isinstance(row, str | Mapping):
                raise ExampleError(
                    f"text {number}: is a {type(row).__name__} - general text must be strings, "
                    "or dictionaries with 'text' or 'query' - correct it"
                )
        return [(f"text {number}", row) for number, row in enumerate(rows, start=1)]
    path = Path(data)
    lines = [
        (f"{path}:{number}", line.strip())
        for number, line in enumerate(read_text(path, "general text").split("\n"), start=1)
        if line.strip()
    ]
    if not (lines and _as_object(lines[0][1]) is not None):
        return list(lines)
    rows_of_file: list[tuple[str, str | Mapping[str, Any]]] = []
    for place, line in lines:
        found = _as_object(line)
        if found is None:
            raise ExampleError(
                f"{place}: is not a JSON object, but the first line is - a file must be either "
                "JSONL or plain text - correct the line"
            )
        rows_of_file.append((place, found))
    return rows_of_file


def _as_object(line: str) -> Mapping[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _put(texts: dict[str, str], value: object, name: str, place: str) -> None:
    if not isinstance(value, str):
        found = type(value).__name__
        raise ExampleError(f"{place}: {name} is a {found} - it must be a string - correct it")
    if not value.strip():
        raise ExampleError(f"{place}: {name} is empty - there is nothing to measure - drop it")
    problem = surrogate_problem(name, value)
    if problem is not None:
        raise ExampleError(f"{place}: {problem}")
    texts.setdefault(value.strip(), place)


def _cloze(text: GeneralText, seed: int) -> list[tuple[str, str, tuple[int, str] | None]]:
    """A sentence of each passage that has several, its place, and the passage without it."""
    made: list[tuple[str, str, tuple[int, str] | None]] = []
    draw = random.Random(seed)
    for number, (passage, place) in enumerate(text.passages):
        sentences = [part for part in _SENTENCE.split(passage) if part.strip()]
        long = [i for i, part in enumerate(sentences) if len(part) >= _FEWEST_CHARACTERS]
        if len(sentences) < 2 or not long:
            continue
        chosen = draw.choice(long)
        others = " ".join(part for i, part in enumerate(sentences) if i != chosen)
        made.append((sentences[chosen].strip(), place, (number, others)))
    return made


def _nearest(passages: Sequence[str], queries: Sequence[str]) -> list[list[int]]:
    """For each query the ``CANDIDATES`` passages that BM25 puts first."""
    try:
        import bm25s  # noqa: PLC0415 - an extra
    except ModuleNotFoundError:
        raise CocktailError(
            "bm25s is not installed - it finds the passages for general queries to rank - install "
            "it (pip install bm25s), or give labelled examples (--retain)"
        ) from None
    index = bm25s.BM25(backend="numpy")
    index.index([_words(passage) for passage in passages], show_progress=False)
    count = min(CANDIDATES, len(passages))
    found, _ = index.retrieve(
        [_words(query) for query in queries], k=count, show_progress=False, sorted=True
    )
    return [list(map(int, row)) for row in found]


def _words(text: str) -> list[str]:
    """Lower-cased words; each character of a script without spaces is a word."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).lower()) or [text]
