"""Read JSONL into examples. Files are indexed, not loaded; problems carry file and line."""

from __future__ import annotations

import bisect
import math
import reprlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from reranker_ft.data.lines import parse_json, parsed_lines, refuse_unwritable
from reranker_ft.errors import ArgumentError, DataError, Problems
from reranker_ft.progress import byte_bar

JSONL_SUFFIXES = (".jsonl", ".json")


@dataclass(frozen=True, slots=True)
class Example:
    """One line of a data file.

    Attributes:
        prompt: Replaces the instruction of the query for this line.
        passage_prompt: Replaces the instruction of the passages for this line.
    """

    query: str
    pos: tuple[str, ...]
    neg: tuple[str, ...]
    pos_scores: tuple[float, ...] | None = None
    neg_scores: tuple[float, ...] | None = None
    prompt: str | None = None
    passage_prompt: str | None = None


def text_key(text: str) -> int:
    """Return a number of 8 bytes that stands for a text, however its white space is set."""
    return xxhash.xxh3_64_intdigest(" ".join(text.split()).encode("utf-8", "surrogatepass"))


def parse_example(line: bytes, *, scores_required: bool = False) -> Example:
    """Read one line.

    Raises:
        ValueError: The line breaks the format; the message says how, without file and line.
    """
    fields = parse_json(line)
    if not isinstance(fields, dict):
        raise ValueError(
            f"the line is {_json_type(fields)} - every line is one JSON object with "
            '"query", "pos" and "neg" - fix it'
        )
    query = fields.get("query")
    if not isinstance(query, str) or not query.strip():
        found = f"is {_json_type(query)}" if not isinstance(query, str) else "has no text"
        found = found if "query" in fields else "is missing"
        raise ValueError(f"`query` {found} - it is the text of the query - add it")
    positives, negatives = _texts(fields, "pos"), _texts(fields, "neg")
    if not positives:
        found = "an empty list" if "pos" in fields else "missing"
        raise ValueError(
            f"`pos` is {found} - every query needs a positive - add one or drop the line"
        )
    for number, positive in enumerate(positives):
        if not positive.strip():
            raise ValueError(f"`pos[{number}]` has no text - a positive is a passage - fix it")
    example = Example(
        query=query,
        pos=positives,
        neg=negatives,
        pos_scores=_scores(fields, "pos_scores", len(positives), scores_required),
        neg_scores=_scores(fields, "neg_scores", len(negatives), scores_required),
        prompt=query_prompt(fields),
        passage_prompt=passage_prompt(fields),
    )
    refuse_unwritable(line, fields)
    return example


def query_prompt(fields: dict[str, Any]) -> str | None:
    """Return a line's own instruction for the query.

    Raises:
        ValueError: It is not a string.
    """
    return _optional_text(fields, "prompt") or _optional_text(fields, "query_prompt")


def passage_prompt(fields: dict[str, Any]) -> str | None:
    """Return a line's own instruction for its passages.

    Raises:
        ValueError: It is not a string.
    """
    return _optional_text(fields, "passage_prompt")


def _json_type(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    return "null" if value is None else names.get(type(value), "a number")


def _texts(fields: dict[str, Any], name: str) -> tuple[str, ...]:
    values = fields.get(name, [])
    if not isinstance(values, list):
        raise ValueError(f"`{name}` is {_json_type(values)} - it is a list of texts - use [...]")
    for number, value in enumerate(values):
        if not isinstance(value, str):
            raise ValueError(
                f"`{name}[{number}]` is {_json_type(value)} - passages are strings - fix it"
            )
    return tuple(values)


def _scores(
    fields: dict[str, Any], name: str, count: int, required: bool
) -> tuple[float, ...] | None:
    values = fields.get(name)
    if values is None:
        if required:
            raise ValueError(
                f"`{name}` is missing - distillation needs a teacher's score for every passage - "
                "add them with `reranker-ft distil`"
            )
        return None
    if not isinstance(values, list) or len(values) != count:
        found = f"{len(values)} scores" if isinstance(values, list) else _json_type(values)
        raise ValueError(f"`{name}` is {found} for {count} passages - one number each - fix it")
    for number, value in enumerate(values):
        if not _is_score(value):
            raise ValueError(
                f"`{name}[{number}]` is {reprlib.repr(value)} - scores are finite numbers - fix it"
            )
    return tuple(map(float, values))


def _is_score(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # JSON's integers have as many digits as they like
        return False


def _optional_text(fields: dict[str, Any], name: str) -> str | None:
    value = fields.get(name)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"`{name}` is {_json_type(value)} - it is a text - fix or drop it")
    return value


def data_files(paths: Sequence[str | Path]) -> list[Path]:
    """Return the files that paths name: a folder stands for its .jsonl and .json files, sorted.

    Raises:
        ArgumentError: A path does not exist, or a folder holds no such file.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_file():
            files.append(path)
        elif path.is_dir():
            found = sorted(p for p in path.iterdir() if p.suffix in JSONL_SUFFIXES and p.is_file())
            if not found:
                raise ArgumentError(
                    f"{path} holds no .jsonl or .json file - a data folder holds them directly - "
                    "name the folder that does"
                )
            files += found
        else:
            raise ArgumentError(
                f"{path} does not exist - data are files or folders - correct the path"
            )
    return files


class ExampleFiles(Sequence[Example]):
    """The examples of several JSONL files, read from disk when they are asked for.

    Memory is 8 bytes per line, whatever the lines hold. Opening parses every line once, so that
    all problems are known before training starts.

    Args:
        paths: Files or folders.
        max_per_file: Take a seeded random sample of at most this many lines of each file.
        seed: Of that sample.
        scores_required: Whether lines without teacher scores are refused.
        negatives_required: Whether lines without negatives are refused.
        progress: Show a progress bar in bytes.

    Raises:
        ArgumentError: A path does not exist.
        DataError: Lines break the format; all are counted, the first ten are named.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        *,
        max_per_file: int | None = None,
        seed: int = 0,
        scores_required: bool = False,
        negatives_required: bool = False,
        progress: bool = False,
    ) -> None:
        self.files = data_files(paths)
        self._scores_required = scores_required
        self._negatives_required = negatives_required
        problems = Problems()
        offsets: list[npt.NDArray[np.int64]] = []
        with byte_bar(self.files, "reading", shown=progress) as bar:
            for number, file in enumerate(self.files):
                lines = parsed_lines(file, self._parse, problems, bar)
                found = np.array([offset for _, offset, _ in lines], np.int64)
                if max_per_file is not None and len(found) > max_per_file:
                    random = np.random.default_rng((seed, number))
                    found = found[np.sort(random.permutation(len(found))[:max_per_file])]
                offsets.append(found)
        problems.refuse()
        self._ends = np.cumsum([len(found) for found in offsets]).tolist()
        self._offsets = np.concatenate(offsets) if offsets else np.zeros(0, np.int64)
        if not len(self._offsets):
            names = ", ".join(map(str, self.files))
            raise DataError(
                [f"{names}: no line with an example - data need at least one - add one"]
            )

    def _parse(self, line: bytes) -> Example:
        example = parse_example(line, scores_required=self._scores_required)
        if self._negatives_required and not example.neg:
            raise ValueError(
                "`neg` is missing or empty - a group needs a negative - add some "
                "(`reranker-ft mine`), or use --in_batch_negatives"
            )
        return example

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        index = int(index) % len(self)
        file = bisect.bisect_right(self._ends, index)
        # Opened anew each time: a handle shared with forked workers would share its position.
        with self.files[file].open("rb") as lines:
            lines.seek(self._offsets[index])
            try:
                return self._parse(lines.readline())
            except ValueError as error:
                raise DataError(
                    [f"{self.files[file]} was changed after it was opened: {error}"]
                ) from None

    def __iter__(self) -> Iterator[Example]:
        return (self[i] for i in range(len(self)))
