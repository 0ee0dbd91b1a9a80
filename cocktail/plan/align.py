"""Find for every tensor of the output the tensors of the ingredients that it is made of."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from cocktail.checkpoint.hub import SIDE_TENSORS
from cocktail.checkpoint.model import MAIN, Checkpoint, Part, tensor_key
from cocktail.checkpoint.ties import INPUT_EMBEDDINGS, is_copy
from cocktail.errors import listed
from cocktail.numbers import shares
from cocktail.plan.vocabularies import Run, Vocabularies
from cocktail.recipe.recipe import Recipe
from cocktail.tensors.dtypes import FLOATING
from cocktail.tensors.info import TensorInfo
from cocktail.tensors.reading import equal_tensors

T = TypeVar("T")

# Buffers that older versions of transformers saved and every version computes.
_COMPUTED = re.compile(r"(^|\.)(position_ids|inv_freq|masked_bias)$")
_IN_LAYER = re.compile(r"(^|\.)\d+\.")
_CAUSAL_MASK = re.compile(r"\.attn(\.attention)?\.bias$")
_BY_TOKEN = re.compile(
    r"embed|wte|(^|\.)shared\.|lm_head|vocab_projector|predictions\.(decoder|bias)"
)
_NOT_BY_TOKEN = re.compile(r"position|type|norm|dense|embeddings_project|mapping")


@dataclass(frozen=True, slots=True)
class Source:
    """A tensor that goes into an output tensor, and with which weight (1 until the plan says)."""

    info: TensorInfo
    weight: float
    ingredient: int


@dataclass
class Alignment:
    """What ``align_parts`` found.

    Attributes:
        sources: by part and name, in the order of the first ingredient's files.
        runs: of tensors whose rows are aligned by token, which rows of the sources make which.
        donor: index of the ingredient that gives config and tokenizer.
    """

    sources: dict[tuple[str, str], tuple[Source, ...]] = field(default_factory=dict)
    runs: dict[tuple[str, str], list[Run]] = field(default_factory=dict)
    donor: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def align_parts(
    ingredients: Sequence[Checkpoint], recipe: Recipe, vocabularies: Vocabularies
) -> Alignment:
    """Match the tensors of K ingredients by name and check that each match can be averaged.

    Args:
        vocabularies: how rows are aligned where tokenizers grew.

    Returns:
        The sources of every output tensor; ``problems`` says what has no match, differs in shape,
        or is an integer tensor with different values.
    """
    result = Alignment(donor=recipe.base_index or 0)
    if vocabularies.grew:
        result.donor = vocabularies.largest
    for path in dict.fromkeys(path for checkpoint in ingredients for path in checkpoint.parts):
        parts = [
            checkpoint.parts.get(path) or Part(path, None, {}, {}) for checkpoint in ingredients
        ]
        originals = [dict(part.tensors) for part in parts]
        tables = originals
        prefix = ""
        if path == MAIN:
            prefix, tables = _align_prefixes(tables, ingredients, result)
            _drop_copies(tables, ingredients, result)
        _Matcher(path, tables, ingredients, recipe, vocabularies, result).match()
        if prefix and not any(name.startswith(prefix) for name in originals[result.donor]):
            # The donor's config describes the model without a head, whose names have no prefix.
            result.sources = _without_prefix(result.sources, prefix)
            result.runs = _without_prefix(result.runs, prefix)
    if vocabularies.grew:
        _require_one_donor(result, vocabularies.largest, [c.reference for c in ingredients])
    return result


def _require_one_donor(result: Alignment, largest: int, names: Sequence[str]) -> None:
    """The config counts the tokens of the tokenizer beside it."""
    if result.donor != largest:
        result.problems.append(
            f"the head decides that the config is that of {names[result.donor]}, and "
            f"{names[largest]} has more tokens - config and tokenizer come from one ingredient - "
            f"add the tokens to {names[result.donor]} first, with resize_token_embeddings()"
        )
    result.notes.insert(
        0,
        f"tokenizers differ: rows are aligned by token, and the tokenizer is that of "
        f"{names[largest]}",
    )


def _without_prefix(found: Mapping[tuple[str, str], T], prefix: str) -> dict[tuple[str, str], T]:
    return {
        (part, name.removeprefix(prefix) if part == MAIN else name): value
        for (part, name), value in found.items()
    }


def _align_prefixes(
    tables: list[dict[str, TensorInfo]], ingredients: Sequence[Checkpoint], result: Alignment
) -> tuple[str, list[dict[str, TensorInfo]]]:
    """Give all ingredients the names of the one with a head (``bert.encoder...``), if any.

    The same transformer is saved with its class's prefix under a task head and without it alone.
    """
    prefixes = [_base_prefix(table) for table in tables]
    wanted = next((prefix for prefix in prefixes if prefix), "")
    aligned = []
    for table, prefix, checkpoint in zip(tables, prefixes, ingredients, strict=True):
        renamed = {wanted + name: info for name, info in table.items()}
        if prefix or not wanted or not any(renamed.keys() & other.keys() for other in tables):
            aligned.append(table)
            continue
        result.notes.append(f"tensors of {checkpoint.reference} matched with the prefix {wanted!r}")
        aligned.append(renamed)
    return wanted, aligned


def _base_prefix(table: Mapping[str, TensorInfo]) -> str:
    """The first component of names such as ``bert.encoder.layer.0...``, with its dot.

    The transformer's own modules (``encoder``, ``layers``) come first where there is no prefix,
    and stand directly before a layer's number.
    """
    counts: dict[str, int] = {}
    for name in table:
        components = name.split(".")
        numbered = [i for i, component in enumerate(components) if component.isdigit()]
        if numbered and numbered[0] >= 2:
            counts[components[0]] = counts.get(components[0], 0) + 1
    # Without a prefix `encoder.layer.0` counts too; there, `embeddings` is a sibling.
    for first in counts:
        if any(
            name.startswith(f"{first}.embed") or name.startswith(f"{first}.wte") for name in table
        ):
            return f"{first}."
    return ""


def _drop_copies(
    tables: list[dict[str, TensorInfo]], ingredients: Sequence[Checkpoint], result: Alignment
) -> None:
    """Leave out what all tie to another tensor of theirs: where only some store it, and where all
    do, for a method would make two different tensors of the two copies."""

    def is_stored_copy(table: Mapping[str, TensorInfo], name: str, other: str) -> bool:
        info, source = table[name], table[other]
        return (
            all(is_copy(name, other, checkpoint.config) for checkpoint in ingredients)
            and (info.shape, info.dtype) == (source.shape, source.dtype)
            and equal_tensors(info, source)
        )

    everywhere = [name for name in tables[0] if all(name in table for table in tables)]
    outside = [name for name in everywhere if not _IN_LAYER.search(name)]
    for name in outside:
        own = next((n for n in outside if all(is_stored_copy(t, name, n) for t in tables)), None)
        if own is not None:
            result.notes.append(f"{name} is a copy of {own}, to which it is tied; left out")
            everywhere.remove(name)
    for table in tables:
        for name in set(outside).difference(everywhere):
            del table[name]
    for checkpoint, table in zip(ingredients, tables, strict=True):
        for name in [name for name in table if not all(name in other for other in tables)]:
            own = next((n for n in everywhere if is_stored_copy(table, name, n)), None)
            if own is not None:
                result.notes.append(
                    f"{name} of {checkpoint.reference} is a copy of {own}, to which it is tied; "
                    "left out"
                )
                del table[name]


class _Matcher:
    """Matches one part; gathers into ``result``."""

    def __init__(
        self,
        path: str,
        tables: Sequence[Mapping[str, TensorInfo]],
        ingredients: Sequence[Checkpoint],
        recipe: Recipe,
        vocabularies: Vocabularies,
        result: Alignment,
    ) -> None:
        self.path = path
        self.tables = tables
        self.ingredients = ingredients
        self.recipe = recipe
        self.vocabularies = vocabularies
        self.result = result

    def match(self) -> None:
        names = list(dict.fromkeys(name for table in self.tables for name in table))
        partial = [name for name in names if not all(name in table for table in self.tables)]
        kept = self._settle_partial(partial)
        for name in names:
            if name not in partial:
                self._match_common(name)
            elif name in kept:
                self._match_kept(name, kept[name])

    def _reference(self, ingredient: int) -> str:
        return self.ingredients[ingredient].reference

    def _match_common(self, name: str) -> None:
        infos = [table[name] for table in self.tables]
        key = tensor_key(self.path, name)
        runs = self._runs(name, infos)
        if runs:
            self.result.runs[self.path, name] = runs
        elif len({info.shape for info in infos}) > 1:
            found = ", ".join(
                f"{list(info.shape)} in {self._reference(i)}" for i, info in enumerate(infos)
            )
            self.result.problems.append(
                f"{key} has shape {found} - shapes must be equal - mix checkpoints of one base"
            )
            return
        if any(info.dtype not in FLOATING for info in infos):
            self._match_exact(name, key, infos)
            return
        self.result.sources[self.path, name] = tuple(
            Source(info, 1.0, i) for i, info in enumerate(infos)
        )

    def _runs(self, name: str, infos: list[TensorInfo]) -> list[Run]:
        """How the rows of a tensor with one a token are aligned; none where they need not be."""
        if (
            not self.vocabularies.grew
            or self.path != MAIN
            or not _BY_TOKEN.search(name)
            or _NOT_BY_TOKEN.search(name.lower())
            or any(info.dtype not in FLOATING for info in infos)
            or len({info.shape[1:] for info in infos}) > 1
            or not all(map(self._has_row_per_token, range(len(infos)), infos))
        ):
            return []
        return self.vocabularies.runs([info.shape[0] for info in infos])

    def _has_row_per_token(self, ingredient: int, info: TensorInfo) -> bool:
        """Whether a tensor is as long as the ingredient's embedding, which may be padded."""
        table = self.tables[ingredient]
        lengths = [t.shape[0] for n, t in table.items() if n.endswith(INPUT_EMBEDDINGS) and t.shape]
        lengths.append(self.ingredients[ingredient].config.get("vocab_size", 0))
        last = max(self.vocabularies.tokens[ingredient].values())
        return bool(info.shape) and info.shape[0] in lengths and info.shape[0] > last

    def _match_kept(self, name: str, owners: list[int]) -> None:
        """A head that some ingredients lack: copied, or averaged in the proportions of the owners'
        weights."""
        given = self.recipe.weights if self.recipe.is_weighted_sum else ()
        own = shares([given[i] if given else 1.0 for i in owners])
        infos = [self.tables[i][name] for i in owners]
        if len(owners) > 1 and any(
            info.shape != infos[0].shape or info.dtype not in FLOATING for info in infos
        ):
            self.result.problems.append(
                f"{tensor_key(self.path, name)} differs in shape or is no floating-point tensor in "
                f"{listed([self._reference(i) for i in owners])} - a head is averaged over models "
                "that have the same - leave it out (--head drop), or one of them"
            )
        self.result.sources[self.path, name] = tuple(
            Source(info, weight, i) for info, weight, i in zip(infos, own, owners, strict=True)
        )

    def _match_exact(self, name: str, key: str, infos: list[TensorInfo]) -> None:
        """Integers and booleans have no average: they must be the same everywhere."""
        for i, info in enumerate(infos[1:], start=1):
            if info.dtype != infos[0].dtype or not equal_tensors(infos[0], info):
                self.result.problems.append(
                    f"{key} ({info.dtype}) differs between {self._reference(0)} and "
                    f"{self._reference(i)} - integer, boolean and 8-bit tensors cannot be averaged "
                    "and must be equal - mix checkpoints that agree in it"
                )
                return
        self.result.sources[self.path, name] = (Source(infos[0], 1.0, 0),)

    def _settle_partial(self, partial: list[str]) -> dict[str, list[int]]:
        """Decide about tensors that some ingredients lack; returns those to keep, and of whom."""
        groups: dict[str, list[str]] = {}
        missing: list[str] = []
        dropped: list[str] = []
        for name in partial:
            stem = self._head_stem(name)
            if self._is_computed(name):
                dropped.append(name)
            elif stem is None:
                missing.append(name)
            else:
                groups.setdefault(stem, []).append(name)
        if dropped:
            self.result.notes.append(
                f"{listed(dropped)}: computed by the model and stored by some only; left out"
            )
        for i in range(len(self.tables)):
            lacking = [tensor_key(self.path, n) for n in missing if n not in self.tables[i]]
            if lacking:
                self.result.problems.append(
                    f"{self._reference(i)} lacks {len(lacking)} tensors that others have "
                    f"({listed(lacking)}) - ingredients must have the same tensors - mix "
                    "checkpoints of one base"
                )
        kept: dict[str, list[int]] = {}
        for stem, names in groups.items():
            owners = self._settle_head(stem, names)
            if owners:
                kept |= dict.fromkeys(names, owners)
        if self.path == MAIN and self.recipe.head == "drop":
            self._leave_donor_of(
                [n for stem, names in groups.items() if "." not in stem for n in names]
            )
        return kept

    def _leave_donor_of(self, dropped: Sequence[str]) -> None:
        """A config that names a class with a head would give it a random one."""
        without = [i for i, table in enumerate(self.tables) if not table.keys() & dropped]
        if without and self.result.donor not in without:
            self.result.donor = without[0]
            self.result.notes.append(
                f"without the head, config and tokenizer are those of {self._reference(without[0])}"
            )

    def _is_computed(self, name: str) -> bool:
        infos = [table[name] for table in self.tables if name in table]
        return bool(_COMPUTED.search(name)) or (
            bool(_CAUSAL_MASK.search(name)) and all(info.dtype in ("BOOL", "U8") for info in infos)
        )

    def _head_stem(self, name: str) -> str | None:
        """The module above ``name`` that an ingredient lacks as a whole, if it is a head.

        Heads hang at the top beside the transformer (``classifier``, ``lm_head``), or are its
        pooler, or a whole part (a dense module).
        """
        if self.path != MAIN:
            return self.path
        lacking = [table for table in self.tables if name not in table]
        components = name.split(".")
        for depth in (1, 2):
            stem = ".".join(components[:depth])
            if depth == 2 and components[1] != "pooler":
                return None
            if not any(key == stem or key.startswith(f"{stem}.") for t in lacking for key in t):
                return stem
        return None

    def _settle_head(self, stem: str, names: list[str]) -> list[int]:
        """The ingredients that a head is taken from; none where it is left out or refused."""
        owners = [i for i, table in enumerate(self.tables) if any(n in table for n in names)]
        who = listed([self._reference(i) for i in owners])
        what = f"the head {stem!r} ({len(names)} tensors)"
        rule = self.recipe.head
        is_module = self.path != MAIN and self.path not in SIDE_TENSORS
        if rule == "drop" and is_module and self.result.donor in owners:
            donor = self._reference(self.result.donor)
            self.result.problems.append(
                f"{what} cannot be left out: modules.json comes from {donor}, which has it - a "
                "module that is named must be there - put a model without it first, or take it "
                "whole with --head copy"
            )
            return []
        if rule == "drop":
            self.result.notes.append(f"{what} of {who} left out")
            return []
        if rule == "mix" and any(n not in self.tables[i] for n in names for i in owners):
            self.result.problems.append(
                f"{who} have different tensors under {what} - a head is averaged over models that "
                "have the same - leave it out (--head drop), or one of them"
            )
        elif rule == "mix" or (rule == "copy" and len(owners) == 1):
            how = "averaged over" if len(owners) > 1 else "copied whole from"
            self.result.notes.append(f"{what} {how} {who}")
            if self.path == MAIN or (is_module and self.result.donor not in owners):
                self.result.donor = owners[0]
            return owners
        elif rule == "copy":
            self.result.problems.append(
                f"only {who} have {what} - a head is copied from the only ingredient that has it - "
                "average it over those that do (--head mix), or leave it out (--head drop)"
            )
        else:
            self.result.problems.append(
                f"only {who} has {what} - a head that is mixed must be in every ingredient, and a "
                "fresh one is random - take it whole with --head copy, or leave it out with "
                "--head drop"
            )
        return []
