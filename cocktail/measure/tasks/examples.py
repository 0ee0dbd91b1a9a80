"""Examples of what a mix should be good at: read, checked, and put in a canonical order.

Every example knows the place it came from, so that an error can name it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeGuard, TypeVar, runtime_checkable

import xxhash

from cocktail.errors import CocktailError, counted, listed

ExampleData: TypeAlias = str | Path | Sequence[Mapping[str, Any]]
"""A JSONL file, or a list of its lines as dictionaries."""


@runtime_checkable
class BenchmarkTask(Protocol):
    """A task of mteb's classes."""

    metadata: Any

    def load_data(self) -> None: ...


RetainedData: TypeAlias = ExampleData | BenchmarkTask
"""Examples, or a task of mteb that ranks texts, or its name, or that of a benchmark."""
_FILES = {".json", ".jsonl", ".txt", ".tsv", ".csv"}


def is_benchmark(data: RetainedData) -> TypeGuard[str | BenchmarkTask]:
    """Whether this is a task of mteb, or a name that can only be one: no file has it, and it has
    neither a folder nor the suffix of a file of examples."""
    if isinstance(data, str):
        is_name = bool(data) and "/" not in data and Path(data).suffix not in _FILES
        return is_name and not Path(data).exists()
    return isinstance(data, BenchmarkTask)


def benchmark_name(benchmark: str | BenchmarkTask) -> str:
    return benchmark if isinstance(benchmark, str) else str(benchmark.metadata.name)


def source_name(data: object) -> str | None:
    """What a model card calls the place where examples come from: a file's name without its folder,
    or a task of mteb; ``None`` for a list."""
    if isinstance(data, str | Path):
        return Path(data).name
    return benchmark_name(data) if isinstance(data, BenchmarkTask) else None


class ExampleError(CocktailError):
    """The examples cannot be used as they stand."""


@dataclass(frozen=True)
class RankedExample:
    """A query with the passages that answer it and passages that do not.

    Attributes:
        positives: only the first is ranked; no negative equals any of them.
        place: file and line, or the position in the list, for messages.
    """

    query: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...]
    place: str

    @property
    def passages(self) -> tuple[str, ...]:
        """The G passages to rank, the positive first."""
        return (self.positives[0], *self.negatives)

    @property
    def content(self) -> tuple[str, ...]:
        return (self.query, *self.positives, *self.negatives)


@dataclass(frozen=True)
class WrittenExample:
    """An input and the output that the model should generate."""

    input: str
    output: str
    place: str

    @property
    def content(self) -> tuple[str, ...]:
        return (self.input, self.output)


Example: TypeAlias = RankedExample | WrittenExample
_Read = TypeVar("_Read", RankedExample, WrittenExample)


def read_ranked(
    data: ExampleData, *, negatives: int | None = None, seed: int = 0
) -> list[RankedExample]:
    """Read examples ``{"query", "pos", "neg"}``.

    Args:
        negatives: how many negatives to draw from each example; ``None`` keeps all.
        seed: for the draw, which depends on the example alone, not on its position.

    Returns:
        N examples in the order given.

    Raises:
        ExampleError: there are none, or one of them lacks a column, has an empty or mistyped one,
            or fewer negatives than asked for; the message names the first and counts the others.
    """
    if negatives is not None and negatives < 0:
        raise ExampleError(f"neg_number is {negatives} - it counts negatives - use 0 or more")
    problems: list[str] = []
    examples = []
    for place, row in _rows(data, problems):
        problem = _ranked_problem(row)
        if problem is not None:
            problems.append(f"{place}: {problem}")
            continue
        positives = tuple(row["pos"])
        pool = tuple(text for text in dict.fromkeys(row.get("neg", ())) if text not in positives)
        if negatives is not None and len(pool) < negatives:
            problems.append(
                f"{place}: has {counted(len(pool), 'negative')} unlike its positives, but "
                f"{negatives} were asked for - every example needs that many - ask for at most "
                f"{len(pool)} (--neg-number, neg_number=), or add some"
            )
            continue
        drawn = _draw(pool, negatives, (row["query"], *positives, str(seed)))
        examples.append(RankedExample(row["query"], positives, drawn, place))
    return _checked(examples, problems, data, '{"query", "pos", "neg"}')


def read_written(data: ExampleData) -> list[WrittenExample]:
    """Read examples ``{"input", "output"}``.

    Returns:
        N examples in the order given.

    Raises:
        ExampleError: as :func:`read_ranked`.
    """
    problems: list[str] = []
    examples = []
    for place, row in _rows(data, problems):
        problem = _text_problem(row, "input", may_be_empty=True) or _text_problem(row, "output")
        if problem is not None:
            problems.append(f"{place}: {problem}")
            continue
        examples.append(WrittenExample(row["input"], row["output"], place))
    return _checked(examples, problems, data, '{"input", "output"}')


def content_order(examples: Sequence[Example], seed: int) -> list[int]:
    """Indices of the examples in an order that depends on what they say and on the seed alone.

    Folds and resamples are cut from this order, so that shuffling a file changes no result.
    """
    keys = [_digest((*example.content, str(seed))) for example in examples]
    return sorted(range(len(examples)), key=keys.__getitem__)


def _rows(data: ExampleData, problems: list[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if data == "":
        raise ExampleError("no file of examples is named - examples are a JSONL file - name it")
    if isinstance(data, str | Path):
        yield from _lines(Path(data), problems)
        return
    if not isinstance(data, Iterable):
        raise ExampleError(
            f"the examples are a {type(data).__name__} - they must be a JSONL file or a list of "
            "dictionaries - give one of them"
        )
    for number, row in enumerate(data, start=1):
        place = f"example {number}"
        found: object = row  # a caller may have put anything there
        if isinstance(found, Mapping):
            yield place, found
        else:
            problems.append(f"{place}: is a {type(row).__name__} - an example must be a dictionary")


def read_text(path: Path, what: str) -> str:
    """The text of a file.

    Args:
        what: what the file holds, for the message.

    Raises:
        ExampleError: it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        if isinstance(error, UnicodeDecodeError):
            raise ExampleError(
                f"{path}: byte {error.start} is not UTF-8 - {what} must be UTF-8 text - convert "
                "the file"
            ) from None
        reason = getattr(error, "strerror", None) or error
        raise ExampleError(
            f"{path}: cannot be read ({reason}) - it should hold the {what} - check the path"
        ) from None


def _lines(path: Path, problems: list[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, line in enumerate(read_text(path, "examples as JSONL").split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            problems.append(f"{place}: is not JSON ({error}) - every line must be one JSON object")
            continue
        if isinstance(row, dict):
            yield place, row
        else:
            problems.append(
                f"{place}: is a {type(row).__name__} - every line must be one JSON object"
            )


def _ranked_problem(row: Mapping[str, Any]) -> str | None:
    problem = _text_problem(row, "query")
    if problem is not None:
        return problem
    if "pos" not in row:
        return f"lacks 'pos' (it has {_names(row)}) - it must be a list of passages - add it"
    for name in ("pos", "neg"):
        problem = _passages_problem(row.get(name, ()), name)
        if problem is not None:
            return problem
    if not row["pos"]:
        return "'pos' is an empty list - a query needs a passage that answers it - add one"
    prompts = [name for name in ("prompt", "query_prompt", "passage_prompt") if row.get(name)]
    if prompts:
        return (
            f"has {listed(prompts)} - a search uses the texts as they are - put the instruction "
            "into the query and the passages"
        )
    return None


def _passages_problem(texts: object, name: str) -> str | None:
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        found = "null" if texts is None else "not a list of strings"
        return f"{name!r} is {found} - it must be a list of passages - correct it"
    if not all(map(str.strip, texts)):
        return (
            f"{name!r} has an empty passage - there is nothing to measure - fill it in or drop it"
        )
    return surrogate_problem(name, *texts)


def _text_problem(row: Mapping[str, Any], name: str, *, may_be_empty: bool = False) -> str | None:
    if name not in row:
        return f"lacks {name!r} (it has {_names(row)}) - this kind of model needs it - add it"
    if not isinstance(row[name], str):
        return f"{name!r} is a {type(row[name]).__name__} - it must be a string - correct it"
    if not row[name].strip() and not may_be_empty:
        return f"{name!r} is empty - there is nothing to measure - fill it in or drop the example"
    return surrogate_problem(name, row[name])


def surrogate_problem(name: str, *texts: str) -> str | None:
    """Refuse half of a surrogate pair, which JSON can escape but which is not a character."""
    try:
        "".join(texts).encode("utf-8")
    except UnicodeEncodeError as error:
        half = error.object[error.start].encode("unicode_escape").decode()
        return f"{name!r} has the lone surrogate {half} - it is not a character - correct the text"
    return None


def _names(row: Mapping[str, Any]) -> str:
    return listed([repr(name) for name in row]) or "no column"


def _checked(
    examples: list[_Read], problems: list[str], data: ExampleData, columns: str
) -> list[_Read]:
    if problems:
        others = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise ExampleError(problems[0] + others)
    if not examples:
        found = (
            f"{data}: holds no examples" if isinstance(data, str | Path) else "no examples given"
        )
        raise ExampleError(f"{found} - at least one is needed, {columns} - add some")
    return examples


def _draw(pool: tuple[str, ...], number: int | None, key: tuple[str, ...]) -> tuple[str, ...]:
    """``number`` texts from the pool, in its order; the same texts for any order of the pool."""
    if number is None or number == len(pool):
        return pool
    drawn = set(random.Random(_digest(key)).sample(sorted(pool), number))
    return tuple(text for text in pool if text in drawn)


def _digest(texts: Sequence[str]) -> str:
    hasher = xxhash.xxh3_128()
    for text in texts:
        # The length in front distinguishes ("ab", "c") from ("a", "bc").
        encoded = text.encode("utf-8", "surrogatepass")
        hasher.update(f"{len(encoded)}:".encode())
        hasher.update(encoded)
    return hasher.hexdigest()
