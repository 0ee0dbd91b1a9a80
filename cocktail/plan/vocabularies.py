"""Compare the tokenizers of the ingredients: a row of the embedding must mean the same token.

Fine-tunes may have added tokens. Then the rows are aligned by token: the mix takes the tokenizer
that holds all tokens, and a row that only some ingredients have comes from those.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cocktail.checkpoint.model import Checkpoint
from cocktail.checkpoint.vocabulary import (
    _added_tokens,
    _files,
    _same_files,
    _same_model,
    read_vocabulary,
)
from cocktail.errors import counted, listed


@dataclass(frozen=True)
class Run:
    """Rows of an output tensor that come from consecutive rows of the same ingredients.

    Attributes:
        start: the first row.
        count: the number of rows.
        rows: for each ingredient, where its rows start; ``None`` if it lacks these tokens.
    """

    start: int
    count: int
    rows: tuple[int | None, ...]


@dataclass(frozen=True)
class Vocabularies:
    """How the tokenizers of K ingredients relate to each other.

    Attributes:
        largest: the ingredient whose tokenizer holds all tokens, or was chosen.
        tokens: for each ingredient, its ids by token, where they are not all alike.
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
            rows: how many rows the tensor has in each ingredient. Those without a token are padding
                and are aligned by position.
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


def compare_vocabularies(
    checkpoints: Sequence[Checkpoint], chosen: int | None = None
) -> Vocabularies:
    """Find which tokens the ingredients share, and with which ids.

    Args:
        chosen: the ingredient whose tokenizer the mix takes; by default the one with the most
            tokens, which must then hold those of all others.

    An ingredient without tokenizer files is assumed to share the first tokenizer found.

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
    largest = max(range(len(ids)), key=lambda i: len(ids[i])) if chosen is None else chosen
    problems = _contradictions(checkpoints, ids, largest, may_lose=chosen is not None)
    return Vocabularies(largest, tuple(ids), problems)


def _unread_problems(first: Checkpoint, other: Checkpoint) -> list[str]:
    """Refuse two tokenizers that differ where one can be read only by sentencepiece."""
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
    checkpoints: Sequence[Checkpoint],
    ids: Sequence[Mapping[str, int]],
    largest: int,
    *,
    may_lose: bool,
) -> list[str]:
    """Require one id per shared token, and all tokens in the largest vocabulary unless some may be
    lost."""
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
                f"the tokenizers of {ours} and {checkpoint.reference} give "
                f"{counted(len(differing), 'token')} different ids ({listed(shown, 3)}) - a row of "
                "the embedding must mean the same token - mix checkpoints of one tokenizer"
            )
        unknown = [repr(token) for token in ids[i] if token not in ids[largest]]
        if unknown and not may_lose:
            problems.append(
                f"{checkpoint.reference} has {counted(len(unknown), 'token')} that {ours} lacks "
                f"({listed(unknown, 3)}) - the mix's tokenizer must hold all tokens - add "
                "them to one of the models first, with resize_token_embeddings()"
            )
    return problems
