"""Read the vocabulary of a tokenizer from its files."""

from __future__ import annotations

import filecmp
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cocktail.errors import CheckpointError


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
    # Unigram lists (token, score) pairs in the order of ids; the other models map tokens to ids.
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
    """Compare bytes: fine-tunes mostly keep the base's file, and parsing is ten times slower."""
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
