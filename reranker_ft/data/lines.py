"""Lines of JSONL and plain text files: decoded, parsed, and refused by file and line."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from reranker_ft.errors import Problems

Parsed = TypeVar("Parsed")

# Lines without these hold nothing unwritable: most need no second look.
_SUSPECT = re.compile(rb"\\u[dD]|NaN|Infinity|\d[eE]\+?\d{3}|\d{309}")


def decode_line(line: bytes, form: str) -> str:
    """Return the text of a line.

    Args:
        form: What the file is supposed to be, for the message.

    Raises:
        ValueError: It is not UTF-8, or a byte order mark would become part of its first text.
    """
    if line.startswith(codecs.BOM_UTF8):
        raise ValueError(
            f"the line begins with a byte order mark - {form} is plain UTF-8 text - save the file "
            "as UTF-8 without it"
        )
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"byte {error.start} of the line is not UTF-8 - {form} is UTF-8 text - convert the file"
        ) from None


def parse_json(
    line: bytes, *, form: str = "JSONL", rule: str = "every line is one JSON object"
) -> Any:
    """Return the value of a line of JSON.

    Args:
        rule: What the line should be, for the message.

    Raises:
        ValueError: The line is not JSON in UTF-8.
    """
    text = decode_line(line, form)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"broken JSON: {error} - {rule} - fix it") from None


def lone_surrogate(text: str) -> str | None:
    """Return the first half of a character in a text, on which tokenizers and files fail."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return text[error.start : error.end]
    return None


def refuse_unwritable(line: bytes, fields: Any) -> None:
    """Refuse what ``json`` reads and a line of JSONL in UTF-8 cannot hold.

    That is an escaped surrogate without its other half, NaN, and numbers beyond a float.

    Args:
        line: The JSON of ``fields``.

    Raises:
        ValueError: There is one in a name or value, at any depth.
    """
    if not _SUSPECT.search(line):
        return
    try:
        text = json.dumps(fields, ensure_ascii=False, allow_nan=False)
    except ValueError:
        raise ValueError(
            "a number is NaN or infinite, or has more digits than a float holds - JSON has none of "
            "these - fix or drop it"
        ) from None
    half = lone_surrogate(text)
    if half is not None:
        raise ValueError(
            f"{half!r} is half of a character - a text consists of whole characters - fix or drop "
            "it"
        )


def parsed_lines(
    file: Path,
    parse: Callable[[bytes], Parsed],
    problems: Problems,
    bar: tqdm[Any] | None = None,
) -> Iterator[tuple[int, int, Parsed | None]]:
    """Yield number, byte offset and content of the lines of a file, without blank ones.

    Args:
        parse: Raises ``ValueError`` for a line that breaks the format: it counts among
            ``problems``, and its content is ``None``.
        bar: Progress in bytes.
    """
    offset = 0
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if bar is not None:
                bar.update(len(line))
            if line.strip():
                content = None
                try:
                    content = parse(line)
                except ValueError as error:
                    problems.add(file, number, error)
                yield number, offset, content
            offset += len(line)
