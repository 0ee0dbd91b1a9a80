"""Make the demo's data: what the docstrings of installed scientific packages say, and general text.

    python examples/docstrings.py OUT

A query is the first sentence of a docstring, its positive the rest of it; the negatives are the
rests that BM25 puts first for the query. No module is imported, its source is read. OUT gets
``train.jsonl`` and ``target.jsonl``, of different files; and about the world ``base.jsonl`` to
teach the base with, ``general.txt`` without labels, and ``general.jsonl`` to test on. No line
stands in two of them.
"""

from __future__ import annotations

import ast
import json
import random
import re
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import bm25s

HERE = Path(__file__).resolve().parent
PACKAGES = ("numpy", "scipy", "matplotlib")
TRAIN, TEST = 260, 120
BASE, TEXT = 220, 60
"""General questions to teach the base with, and to keep."""
GENERAL = 150
"""To test on."""
NEGATIVES = 5
WORDS = 60
"""Of a positive."""


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit("usage: python examples/docstrings.py OUT")
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    pairs = found_pairs()
    training, test = split(pairs)
    write(out / "train.jsonl", with_negatives(training)[:TRAIN])
    write(out / "target.jsonl", with_negatives(test)[:TEST])
    facts = [(row["query"], row["passage"]) for row in lines(HERE / "data/general.jsonl")]
    facts = random.Random(0).sample(facts, len(facts))
    write(out / "base.jsonl", with_negatives(facts[:BASE]))
    text = [{"query": query, "text": passage} for query, passage in facts[BASE : BASE + TEXT]]
    write(out / "general.txt", text)
    general = with_negatives(facts[BASE + TEXT :])[:GENERAL]
    write(out / "general.jsonl", general)
    print(f"{out}: {TRAIN} queries to train on, {TEST} to test on, {len(general)} general ones")


def found_pairs() -> dict[str, list[tuple[str, str]]]:
    """By file, first sentences and rests; each text stands once."""
    seen: set[str] = set()
    found: dict[str, list[tuple[str, str]]] = {}
    for package in PACKAGES:
        folder = Path(find_spec(package).origin).parent
        for path in sorted(folder.rglob("*.py")):
            if "tests" in path.parts:
                continue
            for query, rest in pairs_of(path):
                if not {query, rest} & seen:
                    seen |= {query, rest}
                    found.setdefault(str(path), []).append((query, rest))
    return found


def pairs_of(path: Path) -> Iterator[tuple[str, str]]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            first, _, rest = (ast.get_docstring(node) or "").partition("\n\n")
            query, words = " ".join(first.split()), re.sub(r"[-=~]{3,}", " ", rest).split()
            if 6 <= len(query.split()) <= 25 and len(words) >= 40:
                yield query, " ".join(words[:WORDS])


def split(pairs: dict[str, list[tuple[str, str]]]) -> tuple[list, list]:
    """Files to train on, and the others; in a random order."""
    draw = random.Random(0)
    files = draw.sample(sorted(pairs), len(pairs))
    half = len(files) // 2
    parts = [
        [pair for name in names for pair in pairs[name]] for names in (files[:half], files[half:])
    ]
    return draw.sample(parts[0], len(parts[0])), draw.sample(parts[1], len(parts[1]))


def with_negatives(pairs: list[tuple[str, str]]) -> list[dict]:
    """Each query with the passages of others that BM25 finds for it."""
    words = [re.findall(r"\w+", passage.lower()) for _, passage in pairs]
    index = bm25s.BM25()
    index.index(words, show_progress=False)
    queries = [re.findall(r"\w+", query.lower()) for query, _ in pairs]
    nearest, _ = index.retrieve(queries, k=NEGATIVES + 1, show_progress=False)
    return [
        {
            "query": query,
            "pos": [passage],
            "neg": [pairs[i][1] for i in near if i != number][:NEGATIVES],
        }
        for number, ((query, passage), near) in enumerate(zip(pairs, nearest, strict=True))
    ]


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def write(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
