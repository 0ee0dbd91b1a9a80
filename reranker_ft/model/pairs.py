"""Turn a query and a passage into the tokens of one sequence."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from reranker_ft.errors import ArgumentError, ModelError
from reranker_ft.model.turns import turn

Pair = tuple[str, str]


TokenIds = npt.NDArray[np.int32]


@dataclass(frozen=True)
class PairTemplate:
    """The special tokens around a pair: ``prefix query middle passage suffix``.

    ``type_ids`` holds the token type of these five parts, or ``None`` where the tokenizer makes
    none.
    """

    prefix: TokenIds
    middle: TokenIds
    suffix: TokenIds
    type_ids: tuple[int, int, int, int, int] | None

    @classmethod
    def of(cls, tokenizer: Any) -> PairTemplate:
        """Read the template off one encoded pair.

        Raises:
            ModelError: The tokenizer does not build a pair from the tokens of its two texts.
        """
        whole = tokenizer("query", "passage")
        ids = list(whole["input_ids"])
        query, passage = tokenizer(["query", "passage"], add_special_tokens=False)["input_ids"]
        query_start = _find(query, ids, 0)
        passage_start = -1 if query_start < 0 else _find(passage, ids, query_start + len(query))
        if passage_start < 0:
            raise ModelError(
                f"{type(tokenizer).__name__} encodes a pair as {ids}, which does not hold the "
                f"tokens of its two texts in order ({query}, {passage}) - a cross-encoder reads "
                "query, then passage - use the tokenizer that the model was trained with"
            )
        query_end, passage_end = query_start + len(query), passage_start + len(passage)
        types = whole.get("token_type_ids")
        return cls(
            prefix=np.array(ids[:query_start], np.int32),
            middle=np.array(ids[query_end:passage_start], np.int32),
            suffix=np.array(ids[passage_end:], np.int32),
            type_ids=None
            if types is None
            else (
                types[0],
                types[query_start],
                types[passage_start - 1],
                types[passage_start],
                types[-1],
            ),
        )

    def __len__(self) -> int:
        return len(self.prefix) + len(self.middle) + len(self.suffix)


def _find(part: Sequence[int], whole: Sequence[int], start: int) -> int:
    """Return where ``part`` first occurs in ``whole`` from ``start`` on; -1 if nowhere."""
    for position in range(start, len(whole) - len(part) + 1):
        if list(whole[position : position + len(part)]) == list(part):
            return position
    return -1


@dataclass(frozen=True)
class Padding:
    """How rows of different lengths become one tensor."""

    token_id: int | None
    type_id: int
    left: bool
    multiple_of: int


@dataclass(frozen=True)
class Encodings:
    """Token ids of N pairs, one after the other, and what it takes to pad any of them together.

    Attributes:
        tokens: (T,) ids of all pairs.
        types: (T,) token types, or ``None`` where the tokenizer makes none.
        offsets: (N + 1,) pair i is ``tokens[offsets[i]:offsets[i + 1]]``.
    """

    tokens: TokenIds
    types: npt.NDArray[np.uint8] | None
    offsets: npt.NDArray[np.int64]
    padding: Padding

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Return the (N,) tokens of each pair, special tokens included."""
        return np.diff(self.offsets)

    def ids(self, pair: int) -> TokenIds:
        """Return the (L,) the token ids of one pair."""
        return self.tokens[self.offsets[pair] : self.offsets[pair + 1]]

    def take(self, pairs: Sequence[int]) -> Encodings:
        """Return some of the pairs, in this order."""
        places = np.concatenate(
            [np.arange(self.offsets[pair], self.offsets[pair + 1]) for pair in pairs]
        )
        offsets = np.concatenate([[0], np.cumsum(self.lengths[pairs])])
        types = None if self.types is None else self.types[places]
        return Encodings(self.tokens[places], types, offsets, self.padding)

    def pad(self, pairs: Sequence[int], *, always_mask: bool = False) -> dict[str, Tensor]:
        """Return model inputs (B, L) of these pairs, padded to the longest of them.

        The attention mask is left out where no pair is padded: every model reads a missing mask
        as all ones, and attention is faster without one. ``always_mask`` is for those that do not.

        Raises:
            ModelError: Padding is needed and the tokenizer has no padding token.
        """
        lengths = self.lengths[pairs]  # (B,)
        multiple = self.padding.multiple_of
        width = -(-int(lengths.max()) // multiple) * multiple
        padded = bool((lengths < width).any())
        if padded and self.padding.token_id is None:
            raise ModelError(
                "the tokenizer has no padding token - texts of different lengths are padded "
                "together - set tokenizer.pad_token and save the tokenizer with the model"
            )
        fill = self.padding.token_id or 0
        input_ids = np.full((len(lengths), width), fill, np.int64)
        mask = np.zeros((len(lengths), width), np.int64)
        types = np.full_like(input_ids, self.padding.type_id) if self.types is not None else None
        for row, (pair, length) in enumerate(zip(pairs, lengths, strict=True)):
            columns = slice(width - length, width) if self.padding.left else slice(0, length)
            source = slice(self.offsets[pair], self.offsets[pair] + length)
            input_ids[row, columns] = self.tokens[source]
            mask[row, columns] = 1
            if types is not None and self.types is not None:
                types[row, columns] = self.types[source]
        inputs = {"input_ids": torch.from_numpy(input_ids)}
        if padded or always_mask:
            inputs["attention_mask"] = torch.from_numpy(mask)
        if types is not None:
            inputs["token_type_ids"] = torch.from_numpy(types)
        return inputs


class PairEncoder:
    """Turns (query, passage) pairs into token ids: the query capped, the passage cut to the rest.

    Every distinct text is tokenized once a call, in one batch, so the query of a group of G pairs
    costs one encoding and not G. The result equals what the tokenizer makes of the pair with
    ``truncation="only_second"`` after the query was capped.

    Args:
        tokenizer: A transformers tokenizer.
        max_length: Maximum tokens of a pair, special tokens included.
        query_max_length: Maximum tokens of the query; three quarters of ``max_length`` if
            ``None``. Never so many that no passage token fits.
        passage_max_length: Maximum tokens of the passage; ``None`` leaves it what the query does
            not use.
        pad_to_multiple_of: Pad micro-batches to a multiple of this many tokens (8 suits tensor
            cores).
        template: What stands around the two texts; ``None`` for the tokenizer's own.
        left: Pad on the left; ``None`` for the tokenizer's own side.

    Raises:
        ArgumentError: The lengths leave no room for a query token and a passage token.
        ModelError: The tokenizer does not build a pair from the tokens of its two texts.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        max_length: int = 512,
        query_max_length: int | None = None,
        passage_max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        template: PairTemplate | None = None,
        left: bool | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self._settings = _settings_of(tokenizer)
        self.template = template or PairTemplate.of(tokenizer)
        room = max_length - len(self.template)
        if room < 2:
            raise ArgumentError(
                f"max_length is {max_length} - a pair takes {len(self.template)} special tokens "
                f"and at least one token per text - use {len(self.template) + 2} or more"
            )
        for name, value in (
            ("query_max_length", query_max_length),
            ("passage_max_length", passage_max_length),
            ("pad_to_multiple_of", pad_to_multiple_of),
        ):
            if value is not None and value < 1:
                raise ArgumentError(f"{name} is {value} - it counts tokens - use 1 or more")
        self.max_length = max_length
        self.query_max_length = min(query_max_length or max(1, max_length * 3 // 4), room - 1)
        self.passage_max_length = min(passage_max_length or room, room)
        self.padding = Padding(
            token_id=tokenizer.pad_token_id,
            type_id=tokenizer.pad_token_type_id,
            left=tokenizer.padding_side == "left" if left is None else left,
            multiple_of=pad_to_multiple_of or 1,
        )

    def __call__(self, pairs: Sequence[Pair]) -> Encodings:
        """Encode N pairs, order kept."""
        queries = self._tokenize((query for query, _ in pairs), self.query_max_length)
        passages = self._tokenize((passage for _, passage in pairs), self.passage_max_length)
        template, room = self.template, self.max_length - len(self.template)
        rows: list[TokenIds] = []
        part_lengths: list[int] = []
        offsets = np.zeros(len(pairs) + 1, np.int64)
        for number, (query_text, passage_text) in enumerate(pairs):
            query = queries[query_text]
            passage = passages[passage_text][: room - len(query)]
            row = (template.prefix, query, template.middle, passage, template.suffix)
            rows += row
            part_lengths += map(len, row)
            offsets[number + 1] = offsets[number] + len(template) + len(query) + len(passage)
        types = None
        if template.type_ids is not None:
            part_types = np.tile(np.array(template.type_ids, np.uint8), len(pairs))
            types = np.repeat(part_types, part_lengths)
        tokens = np.concatenate(rows) if rows else np.zeros(0, np.int32)
        return Encodings(tokens, types, offsets, self.padding)

    def text_lengths(self, texts: Sequence[str]) -> npt.NDArray[np.int64]:
        """Return the (N,) tokens of each text, uncut and without special tokens."""
        ids = self._tokenize(texts, None)
        return np.array([len(ids[text]) for text in texts], np.int64)

    def cut_lengths(
        self, query_lengths: npt.NDArray[np.int64], passage_lengths: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64]:
        """Return the (N,) tokens that pairs of these uncut lengths have once they are encoded."""
        queries = np.minimum(query_lengths, self.query_max_length)
        room = self.max_length - len(self.template) - queries
        passages = np.minimum(np.minimum(passage_lengths, self.passage_max_length), room)
        lengths: npt.NDArray[np.int64] = queries + passages + len(self.template)
        return lengths

    @contextmanager
    def tokenizer_as_it_came(self) -> Iterator[None]:
        """Inside, the tokenizer has the settings that it was loaded with, and may be saved."""
        with turn(self.tokenizer):
            _restore(self.tokenizer, self._settings)
            yield

    def _tokenize(self, texts: Iterable[str], max_length: int | None) -> dict[str, TokenIds]:
        unique = list(dict.fromkeys(texts))
        if not unique:
            return {}
        with turn(self.tokenizer):
            rows = self.tokenizer(
                unique,
                add_special_tokens=False,
                truncation=max_length is not None,
                max_length=max_length,
                return_attention_mask=False,
                return_token_type_ids=False,
                verbose=False,
            )["input_ids"]
        return {text: np.array(ids, np.int32) for text, ids in zip(unique, rows, strict=True)}


def _settings_of(tokenizer: Any) -> tuple[Any, Any] | None:
    """Return truncation and padding that are part of a fast tokenizer; others have none."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return None if backend is None else (backend.truncation, backend.padding)


def _restore(tokenizer: Any, settings: tuple[Any, Any] | None) -> None:
    if settings is not None:
        truncation, padding = settings
        backend = tokenizer.backend_tokenizer
        backend.enable_truncation(**truncation) if truncation else backend.no_truncation()
        backend.enable_padding(**padding) if padding else backend.no_padding()


@contextmanager
def settings_kept(tokenizer: Any) -> Iterator[None]:
    """Give back truncation and padding that are part of a fast tokenizer, which calls change."""
    settings = _settings_of(tokenizer)
    try:
        yield
    finally:
        _restore(tokenizer, settings)
