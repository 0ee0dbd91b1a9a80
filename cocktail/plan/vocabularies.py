"""Compare the tokenizers of the ingredients: a row of the embedding must mean the same token.

Fine-tunes may have added tokens. Then the rows are aligned by token: the tokenizer of the mix is
the one that holds all tokens, and a row that only some ingredients have comes from those.
"""

from __future__ import annotations

import filecmp
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cocktail.checkpoint.whole import Checkpoint
from cocktail.errors import CheckpointError, listed


@dataclass(frozen=True)
class Run:
    """Rows of an output tensor that come from consecutive rows of the same ingredients.

    Attributes:
        start: the first of them.
        count: how many.
        rows: by ingredient, where its rows start; ``None`` for one that has none of these tokens.
    """

    start: int
    count: int
    rows: tuple[int | None, ...]


@dataclass(frozen=True)
class Vocabularies:
    """What the tokenizers of K ingredients have to do with each other.

    Attributes:
        largest: the ingredient whose tokenizer holds all tokens.
        tokens: by ingredient, its ids by token, where they are not all alike.
        problems: one line for each contradiction.
    """

    largest: int = 0
    tokens: tuple[Mapping[str, int], ...] = ()
    problems: list[str] = field(default_factory=list)

    @property
    def grew(self) -> bool:
        """Whether rows have to be aligned by token."""
        return bool(self.tokens) and not self.problems

    def runs(self, rows: Sequence[int]) -> list[Run]:
        """Where each row of a tensor comes from.

        Args:
            rows: how many the tensor has in each ingredient. Those that stand for no token pad the
                table, and are aligned by place.
        """
        names = {number: token for token, number in self.tokens[self.largest].items()}
        used = [set(ids.values()) for ids in self.tokens]
        found: list[Run] = []
        for row in range(rows[self.largest]):
            token = names.get(row)
            places = tuple(
                ids.get(token)
                if token is not None
                else (row if row < rows[i] and row not in used[i] else None)
                for i, ids in enumerate(self.tokens)
            )
            last = found[-1] if found else None
            if last and places == tuple(
                None if place is None else place + last.count for place in last.rows
            ):
                found[-1] = Run(last.start, last.count + 1, last.rows)
            else:
                found.append(Run(row, 1, places))
        return found


def compare_vocabularies(checkpoints: Sequence[Checkpoint]) -> Vocabularies:
    """Find out which tokens the ingredients share, and which ids these have.

    An ingredient without tokenizer files is taken to have the tokenizer of the first that has one.

    Raises:
        CheckpointError: a tokenizer file is damaged.
    """
    known = [i for i, checkpoint in enumerate(checkpoints) if _files(checkpoint.main_folder)]
    if not known:
        return Vocabularies()
    first = checkpoints[known[0]]
    others = [
        i for i in known[1:] if not _same_files(first.main_folder, checkpoints[i].main_folder)
    ]
    if not others:
        return Vocabularies()
    ids = [read_vocabulary(first.main_folder)] * len(checkpoints)
    problems = []
    for i in others:
        ids[i] = read_vocabulary(checkpoints[i].main_folder)
        if not (ids[i] and ids[known[0]]):
            problems += _unread_problems(first, checkpoints[i])
    if problems or not all(ids) or all(table == ids[0] for table in ids):
        return Vocabularies(problems=problems)
    largest = max(range(len(ids)), key=lambda i: len(ids[i]))
    problems = _contradictions(checkpoints, ids, largest)
    return Vocabularies(largest, tuple(ids), problems)


def _unread_problems(first: Checkpoint, other: Checkpoint) -> list[str]:
    """Of two, one has a vocabulary that only its sentencepiece model tells."""
    if not _same_model(first.main_folder, other.main_folder):
        return [
            f"the tokenizer files of {first.reference} and {other.reference} differ and cannot be "
            "compared - the same token must have the same id - save both tokenizers as "
            "tokenizer.json"
        ]
    ours, theirs = _added_tokens(first.main_folder), _added_tokens(other.main_folder)
    tokens = {number: token for token, number in ours.items()}
    clashes = [
        f"{token!r} is {number}"
        for token, number in theirs.items()
        if ours.get(token, number) != number or tokens.get(number, token) != token
    ]
    if not clashes:
        return []
    return [
        f"{other.reference} has added tokens ({listed(clashes, 3)}) that contradict those of "
        f"{first.reference} - a row of the embedding must mean the same token - mix checkpoints of "
        "one tokenizer"
    ]


def _contradictions(
    checkpoints: Sequence[Checkpoint], ids: Sequence[Mapping[str, int]], largest: int
) -> list[str]:
    """Tokens that all ingredients know must have one id; the largest must know all tokens."""
    problems = []
    common = set(ids[0]).intersection(*ids[1:])
    ours = checkpoints[largest].reference
    for i, checkpoint in enumerate(checkpoints):
        differing = [token for token in common if ids[i][token] != ids[largest][token]]
        if differing:
            shown = [
                f"{token!r} is {ids[largest][token]} and {ids[i][token]}"
                for token in sorted(differing, key=ids[largest].__getitem__)
            ]
            problems.append(
                f"the tokenizers of {ours} and {checkpoint.reference} give {len(differing)} tokens "
                f"different ids ({listed(shown, 3)}) - a row of the embedding must mean the same "
                "token - mix checkpoints of one tokenizer"
            )
        unknown = [repr(token) for token in ids[i] if token not in ids[largest]]
        if unknown:
            problems.append(
                f"{checkpoint.reference} has {len(unknown)} tokens that {ours} lacks "
                f"({listed(unknown, 3)}) - the mix takes a tokenizer that holds all tokens - add "
                "them to one of the models first, with resize_token_embeddings()"
            )
    return problems


def read_vocabulary(folder: Path) -> dict[str, int]:
    """The ids of all tokens, added ones included; empty if no readable vocabulary is there.

    Raises:
        CheckpointError: a file that is there is damaged.
    """
    added = _added_tokens(folder)
    with _understanding(folder):
        if (folder / "tokenizer.json").is_file():
            return added | _from_tokenizer_json(folder / "tokenizer.json")
        vocabulary: dict[str, int] = {}
        if (folder / "vocab.txt").is_file():
            lines = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
            vocabulary = {token: number for number, token in enumerate(lines) if token}
        elif (folder / "vocab.json").is_file():
            vocabulary = _table(json.loads((folder / "vocab.json").read_text(encoding="utf-8")))
    return vocabulary | added if vocabulary else {}


@contextmanager
def _understanding(folder: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{folder}: its tokenizer files cannot be understood ({type(error).__name__}: {error}) "
            "- repair or replace them"
        ) from None


def _from_tokenizer_json(path: Path) -> dict[str, int]:
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    entries = tokenizer["model"]["vocab"]
    # Unigram lists (token, score) pairs in the order of their ids; the other models map.
    vocabulary = (
        {token: number for number, (token, _) in enumerate(entries)}
        if isinstance(entries, list)
        else entries
    )
    added = {added["content"]: added["id"] for added in tokenizer["added_tokens"] or ()}
    return _table(vocabulary) | _table(added)


def _added_tokens(folder: Path) -> dict[str, int]:
    """What ``added_tokens.json`` and ``tokenizer_config.json`` add to the vocabulary.

    Raises:
        CheckpointError: one of them is damaged.
    """
    old, new = folder / "added_tokens.json", folder / "tokenizer_config.json"
    with _understanding(folder):
        added = _table(json.loads(old.read_text(encoding="utf-8"))) if old.is_file() else {}
        if new.is_file():
            settings = json.loads(new.read_text(encoding="utf-8"))
            decoder = settings.get("added_tokens_decoder") or {}
            added |= _table({token["content"]: int(number) for number, token in decoder.items()})
    return added


def _table(value: Any) -> dict[str, int]:
    if not isinstance(value, dict) or not all(type(number) is int for number in value.values()):
        raise TypeError("a vocabulary is a map from tokens to whole numbers")
    return value


_NAMES = ("tokenizer.json", "vocab.txt", "vocab.json")
_MODELS = ("tokenizer.model", "sentencepiece.bpe.model", "spiece.model", "spm.model")


def _files(folder: Path) -> list[str]:
    return [name for name in (*_NAMES, *_MODELS) if (folder / name).is_file()]


def _same_files(folder: Path, other: Path) -> bool:
    """Fine-tunes mostly keep the base's file, and comparing bytes is ten times faster than JSON."""
    names = [name for name in _files(folder) if name in _NAMES]
    return (
        bool(names)
        and names == [name for name in _files(other) if name in _NAMES]
        and filecmp.cmp(folder / names[0], other / names[0], shallow=False)
        and _added_tokens(folder) == _added_tokens(other)
    )


def _same_model(folder: Path, other: Path) -> bool:
    names = [name for name in _MODELS if (folder / name).is_file() and (other / name).is_file()]
    return bool(names) and filecmp.cmp(folder / names[0], other / names[0], shallow=False)
