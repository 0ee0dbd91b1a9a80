"""Compare the tokenizers of the ingredients: a row of the embedding must mean the same token."""

from __future__ import annotations

import filecmp
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from cocktail.checkpoint import Checkpoint
from cocktail.errors import CheckpointError, listed


def vocabulary_problems(checkpoints: Sequence[Checkpoint]) -> list[str]:
    """Say which tokens have different ids in different ingredients.

    An ingredient without tokenizer files is passed over: nothing can be said about it.

    Returns:
        One line for each ingredient that contradicts the first one that has a tokenizer.

    Raises:
        CheckpointError: a tokenizer file is damaged.
    """
    problems: list[str] = []
    known = [checkpoint for checkpoint in checkpoints if _files(checkpoint.main_folder)]
    first: Mapping[str, int] | None = None
    for other in known[1:]:
        if _same_files(known[0].main_folder, other.main_folder):
            continue
        if first is None:
            first = read_vocabulary(known[0].main_folder)
        theirs = read_vocabulary(other.main_folder)
        if not first or not theirs:
            if not _same_model(known[0].main_folder, other.main_folder):
                problems.append(
                    f"the tokenizer files of {known[0].reference} and {other.reference} differ and "
                    "cannot be compared - the same token must have the same id - save both "
                    "tokenizers as tokenizer.json"
                )
            continue
        differing = [
            token for token, number in first.items() if theirs.get(token, number) != number
        ]
        if differing:
            shown = [f"{token!r} is {first[token]} and {theirs[token]}" for token in differing]
            problems.append(
                f"the tokenizers of {known[0].reference} and {other.reference} give "
                f"{len(differing)} tokens different ids ({listed(shown, 3)}) - a row of the "
                "embedding must mean the same token - mix checkpoints of one tokenizer"
            )
    return problems


def read_vocabulary(folder: Path) -> dict[str, int]:
    """The ids of all tokens, added ones included; empty if no readable vocabulary is there.

    Raises:
        CheckpointError: a file that is there is damaged.
    """
    try:
        if (folder / "tokenizer.json").is_file():
            return _from_tokenizer_json(folder / "tokenizer.json")
        vocabulary: dict[str, int] = {}
        if (folder / "vocab.txt").is_file():
            lines = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
            vocabulary = {token: number for number, token in enumerate(lines) if token}
        elif (folder / "vocab.json").is_file():
            vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        if vocabulary and (folder / "added_tokens.json").is_file():
            vocabulary |= json.loads((folder / "added_tokens.json").read_text(encoding="utf-8"))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{folder}: its tokenizer files cannot be understood ({type(error).__name__}: {error}) "
            "- repair or replace them"
        ) from None
    return vocabulary


def _from_tokenizer_json(path: Path) -> dict[str, int]:
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    entries = tokenizer["model"]["vocab"]
    # Unigram lists (token, score) pairs in the order of their ids; the other models map.
    vocabulary = (
        {token: number for number, (token, _) in enumerate(entries)}
        if isinstance(entries, list)
        else dict(entries)
    )
    vocabulary.update({added["content"]: added["id"] for added in tokenizer["added_tokens"] or ()})
    return vocabulary


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
        and (filecmp.cmp(folder / names[0], other / names[0], shallow=False))
    )


def _same_model(folder: Path, other: Path) -> bool:
    names = [name for name in _MODELS if (folder / name).is_file() and (other / name).is_file()]
    return bool(names) and filecmp.cmp(folder / names[0], other / names[0], shallow=False)
