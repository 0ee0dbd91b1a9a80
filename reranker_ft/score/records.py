"""Score lines with pairs or groups of passages as a stream."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TextIO

from reranker_ft.data.examples import parse_example, passage_prompt, query_prompt
from reranker_ft.data.files import existing_file, new_text_file, refuse_existing
from reranker_ft.data.lines import decode_line, parse_json, parsed_lines, refuse_unwritable
from reranker_ft.errors import DataError, Problems
from reranker_ft.progress import progress_bar

if TYPE_CHECKING:
    from reranker_ft.model.pairs import Pair
    from reranker_ft.score.reranker import Reranker

# Pairs scored together: enough for batches of even length, few enough that the output grows and
# the progress bar moves every minute or so on a CPU.
CHUNK_PAIRS = 2048

STANDARD_STREAM = "-"


@dataclass(frozen=True, slots=True)
class Record:
    """One line: its fields, and the pairs in it that get a score.

    Attributes:
        positives: How many of the pairs, from the first, hold positives; ``None`` for a line with
            one query and one passage.
        prompt, passage_prompt: Replace the reranker's instructions for this line.
    """

    fields: dict[str, Any]
    pairs: tuple[Pair, ...]
    positives: int | None = None
    prompt: str | None = None
    passage_prompt: str | None = None

    def with_scores(self, scores: Sequence[float]) -> dict[str, Any]:
        """Return the fields, and "score", or "pos_scores" and "neg_scores"."""
        if self.positives is None:
            return {**self.fields, "score": scores[0]}
        return {
            **self.fields,
            "pos_scores": list(scores[: self.positives]),
            "neg_scores": list(scores[self.positives :]),
        }


def parse_record(line: bytes, *, tsv: bool = False) -> Record:
    """Read a line: query and passage, query with pos and neg, or two texts around a tab.

    Raises:
        ValueError: The line is none of these; the message says why, without file and line.
    """
    if tsv:
        return _parse_tab_separated(line)
    fields = _json_object(line)
    if fields and not {"passage", "pos"} & set(fields):
        raise ValueError(
            "neither `passage` nor `pos` is there - a line has a query and one passage, or a query "
            "with pos and neg - add it"
        )
    if "passage" not in fields:
        example = parse_example(line)
        pairs = tuple((example.query, text) for text in example.pos + example.neg)
        positives = len(example.pos)
        return Record(fields, pairs, positives, example.prompt, example.passage_prompt)
    for name in ("query", "passage"):
        if not isinstance(fields.get(name), str):
            raise ValueError(f"`{name}` is missing or not a string - a pair has two texts - add it")
    refuse_unwritable(line, fields)
    return Record(
        fields,
        ((fields["query"], fields["passage"]),),
        prompt=query_prompt(fields),
        passage_prompt=passage_prompt(fields),
    )


def _json_object(line: bytes) -> dict[str, Any]:
    """Return the line's fields; {} where there are none to be had, for parse_example to say why."""
    try:
        fields = parse_json(line)
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}


def _parse_tab_separated(line: bytes) -> Record:
    columns = decode_line(line, "TSV").rstrip("\r\n").split("\t")
    if len(columns) != 2:
        raise ValueError(
            f"{len(columns)} column(s) - a line is query, tab, passage - fix it, or write JSONL"
        )
    query, passage = columns
    return Record({"query": query, "passage": passage}, ((query, passage),))


def parse_records(lines: Iterable[bytes], name: str, *, tsv: bool = False) -> Iterator[Record]:
    """Return the records of a file, blank lines left out.

    Raises:
        DataError: At the first line that breaks the format, with its number.
    """
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                yield parse_record(line, tsv=tsv)
            except ValueError as error:
                raise DataError([f"{name}:{number}: {error}"]) from None


def count_pairs(path: str | Path, *, tsv: bool = False) -> int:
    """Return how many pairs a file holds, after making sure that all of its lines can be read.

    Raises:
        ArgumentError: There is no such file.
        DataError: Lines break the format; all are counted, the first ten are named.
    """
    problems = Problems()
    records = parsed_lines(existing_file(path), partial(parse_record, tsv=tsv), problems)
    pairs = sum(len(record.pairs) for _, _, record in records if record is not None)
    problems.refuse()
    return pairs


def score_records(
    reranker: Reranker, records: Iterable[Record], *, pairs: int | None, progress: bool = False
) -> Iterator[dict[str, Any]]:
    """Yield each record's fields with its scores, in order, a chunk of pairs at a time.

    Args:
        pairs: Pairs in all records, for the progress bar; ``None`` if unknown.
    """
    with progress_bar(pairs, "scoring", unit="pairs", shown=progress) as bar:
        for chunk in _chunks(records):
            flat = [
                reranker.instruct(query, passage, record.prompt, record.passage_prompt)
                for record in chunk
                for query, passage in record.pairs
            ]
            scores = reranker.score_pairs(flat).tolist()
            start = 0
            for record in chunk:
                end = start + len(record.pairs)
                yield record.with_scores(scores[start:end])
                start = end
            bar.update(len(flat))


def _chunks(records: Iterable[Record]) -> Iterator[list[Record]]:
    """Run of records that hold about CHUNK_PAIRS pairs together."""
    chunk: list[Record] = []
    pairs = 0
    for record in records:
        chunk.append(record)
        pairs += len(record.pairs)
        if pairs >= CHUNK_PAIRS:
            yield chunk
            chunk, pairs = [], 0
    if chunk:
        yield chunk


def score_file(
    reranker: Reranker,
    input_file: str | Path,
    output_file: str | Path,
    *,
    tsv: bool = False,
    overwrite: bool = False,
    progress: bool = False,
) -> dict[str, int]:
    """Copy lines with their scores; nothing but one chunk is held in memory.

    Args:
        input_file: JSONL or TSV; "-" is standard input.
        output_file: JSONL, which appears once it is complete; "-" is standard output.

    Returns:
        The numbers of "lines" and "pairs" scored.

    Raises:
        ArgumentError: The input is missing, or the output exists and ``overwrite`` is false.
        DataError: Lines of the input break the format.
    """
    if str(output_file) != STANDARD_STREAM:
        refuse_existing(output_file, overwrite=overwrite)
    from_stream = str(input_file) == STANDARD_STREAM
    total = None if from_stream else count_pairs(input_file, tsv=tsv)
    counted = {"lines": 0, "pairs": 0}
    with ExitStack() as open_files:
        lines: IO[bytes] = sys.stdin.buffer
        if not from_stream:
            lines = open_files.enter_context(Path(input_file).open("rb"))
        output = sys.stdout
        if str(output_file) != STANDARD_STREAM:
            output = open_files.enter_context(new_text_file(output_file, overwrite=overwrite))
        records = _counted(parse_records(lines, str(input_file), tsv=tsv), counted)
        for scored in score_records(reranker, records, pairs=total, progress=progress):
            write_line(output, scored)
    return counted


def _counted(records: Iterable[Record], counted: dict[str, int]) -> Iterator[Record]:
    for record in records:
        counted["lines"] += 1
        counted["pairs"] += len(record.pairs)
        yield record


def write_line(output: TextIO, fields: dict[str, Any]) -> None:
    """Write one line of JSONL, text left readable."""
    output.write(json.dumps(fields, ensure_ascii=False) + "\n")
