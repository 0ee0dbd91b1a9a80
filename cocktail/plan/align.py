"""Find, for every output tensor, the ingredients' tensors that it is made of."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from cocktail.checkpoint.model import MAIN, Checkpoint, Part, tensor_key
from cocktail.checkpoint.ties import INPUT_EMBEDDINGS
from cocktail.checkpoint.weight_files import SIDE_TENSORS
from cocktail.errors import counted, listed
from cocktail.numbers import shares
from cocktail.plan.alignment import Alignment, Source
from cocktail.plan.donor import first_donor, name_for_donor, require_one_donor
from cocktail.plan.names import Names, common_names
from cocktail.plan.vocabularies import Run, Vocabularies
from cocktail.recipe.recipe import Recipe
from cocktail.tensors.dtypes import FLOATING
from cocktail.tensors.info import TensorInfo
from cocktail.tensors.reading import equal_tensors

_IN_LAYER = re.compile(r"(^|\.)\d+\.")
_BY_TOKEN = re.compile(
    r"embed|wte|(^|\.)shared\.|lm_head|vocab_projector|predictions\.(decoder|bias)"
)
_NOT_BY_TOKEN = re.compile(r"position|type|norm|dense|embeddings_project|mapping")


def align_parts(
    ingredients: Sequence[Checkpoint], recipe: Recipe, vocabularies: Vocabularies
) -> Alignment:
    """Match the tensors of K ingredients by name and check that each match can be averaged.

    Args:
        vocabularies: how to align rows where tokenizers grew.

    Returns:
        The sources of every output tensor; ``problems`` says what has no match, differs in shape,
        or is an integer tensor with different values.
    """
    result = Alignment(donor=first_donor(ingredients, recipe.base_index))
    if vocabularies.grew:
        result.donor = vocabularies.largest
    for path in dict.fromkeys(path for checkpoint in ingredients for path in checkpoint.parts):
        parts = [
            checkpoint.parts.get(path) or Part(path, None, {}, {}) for checkpoint in ingredients
        ]
        tables: Sequence[Mapping[str, TensorInfo]] = [part.tensors for part in parts]
        names = None
        if path == MAIN:
            names = common_names(ingredients)
            tables = names.tables
            result.notes += names.notes
        _Matcher(path, tables, ingredients, recipe, vocabularies, result, names).match()
        if names is not None:
            name_for_donor(result, names, ingredients)
    if vocabularies.grew:
        require_one_donor(result, vocabularies.largest, [c.reference for c in ingredients])
    return result


class _Matcher:
    """Matches one part, and collects what it finds in ``result``."""

    def __init__(
        self,
        path: str,
        tables: Sequence[Mapping[str, TensorInfo]],
        ingredients: Sequence[Checkpoint],
        recipe: Recipe,
        vocabularies: Vocabularies,
        result: Alignment,
        names: Names | None,
    ) -> None:
        self.path = path
        self.tables = tables
        self.ingredients = ingredients
        self.recipe = recipe
        self.vocabularies = vocabularies
        self.result = result
        self.names = names if names is not None and names.known_classes else None
        self.head_owners: dict[str, int] = {}

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
        """How to align the rows of a tensor with one row per token; empty if there is no need."""
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
        """Whether a tensor has as many rows as the ingredient's embedding, which may be padded."""
        table = self.tables[ingredient]
        lengths = [t.shape[0] for n, t in table.items() if n.endswith(INPUT_EMBEDDINGS) and t.shape]
        lengths.append(self.ingredients[ingredient].config.get("vocab_size", 0))
        last = max(self.vocabularies.tokens[ingredient].values())
        return bool(info.shape) and info.shape[0] in lengths and info.shape[0] > last

    def _match_kept(self, name: str, owners: list[int]) -> None:
        """Copy a head that some ingredients lack, or average it by the weights of its owners."""
        given = self.recipe.weights if self.recipe.is_weighted_sum else ()
        own = shares([given[i] if given else 1.0 for i in owners])
        infos = [self.tables[i][name] for i in owners]
        if len(owners) > 1 and any(
            info.shape != infos[0].shape or info.dtype not in FLOATING for info in infos
        ):
            self.result.problems.append(
                f"{tensor_key(self.path, name)} differs in shape or is not floating-point in "
                f"{listed([self._reference(i) for i in owners])} - heads must match to be averaged "
                "- leave the head out (--head drop), or leave out one of the models"
            )
        self.result.sources[self.path, name] = tuple(
            Source(info, weight, i) for info, weight, i in zip(infos, own, owners, strict=True)
        )

    def _match_exact(self, name: str, key: str, infos: list[TensorInfo]) -> None:
        """Integers and booleans have no average: they must be equal everywhere."""
        for i, info in enumerate(infos[1:], start=1):
            if info.dtype != infos[0].dtype or not equal_tensors(infos[0], info):
                self.result.problems.append(
                    f"{key} ({info.dtype}) differs between {self._reference(0)} and "
                    f"{self._reference(i)} - integer, boolean and 8-bit tensors cannot be averaged "
                    "and must be equal - mix checkpoints that agree on it"
                )
                return
        self.result.sources[self.path, name] = (Source(infos[0], 1.0, 0),)

    def _settle_partial(self, partial: list[str]) -> dict[str, list[int]]:
        """Decide on tensors that some ingredients lack; return those to keep, with their owners."""
        groups: dict[str, list[str]] = {}
        missing: list[str] = []
        left_over: list[str] = []
        kept: dict[str, list[int]] = {}
        for name in partial:
            stem = self._head_stem(name)
            if self.names is not None and self.names.is_left_over(name):
                left_over.append(name)
            elif self.names is not None and self.names.is_buffer(name):
                if self._is_donors(name):
                    kept[name] = self._owners([name])
                else:
                    left_over.append(name)
            elif stem is None:
                missing.append(name)
            else:
                groups.setdefault(stem, []).append(name)
        for stem in [stem for stem, names in groups.items() if self._is_transformer(names)]:
            missing += groups.pop(stem)
        if left_over:
            self.result.notes.append(
                f"{listed(left_over, 3)}: left out, as the model's class has no such weights and "
                "only some models store them"
            )
        self._refuse_missing(missing)
        for stem, names in groups.items():
            owners = self._settle_head(stem, names)
            if owners:
                kept |= dict.fromkeys(names, owners)
        self._give_config()
        if self.path == MAIN and self.recipe.head == "drop":
            self._leave_donor_of([n for names in groups.values() for n in names])
        return kept

    def _owners(self, names: Sequence[str]) -> list[int]:
        return [i for i, table in enumerate(self.tables) if any(n in table for n in names)]

    def _is_donors(self, name: str) -> bool:
        """Whether the class that the donor's config names has such a tensor."""
        asked = None if self.names is None else self.names.classes[self.result.donor]
        return asked is not None and asked.place(name) is not None

    def _is_transformer(self, names: Sequence[str]) -> bool:
        """Whether the names make up a whole transformer, not a head."""
        return any(map(_IN_LAYER.search, names)) and any(
            2 * len(names) > len(self.tables[i]) for i in self._owners(names)
        )

    def _refuse_missing(self, missing: Sequence[str]) -> None:
        for i, table in enumerate(self.tables):
            lacking = [tensor_key(self.path, n) for n in missing if n not in table]
            if not lacking:
                continue
            if self.names is not None and self._differ_in_layout(i):
                self.result.problems.append(
                    f"{self._reference(i)} lacks {listed(lacking, 2)}, but has the same weights "
                    "under other names - some versions of transformers store a layer's experts one "
                    "by one and others all together - load both with one version, and save them "
                    "again with save_pretrained()"
                )
                continue
            self.result.problems.append(
                f"{self._reference(i)} lacks {counted(len(lacking), 'tensor')} that others have "
                f"({listed(lacking)}) - ingredients must have the same tensors - mix "
                "checkpoints of one base"
            )

    def _differ_in_layout(self, i: int) -> bool:
        """Whether the ingredients only store the same tensors in different layouts."""
        names = self.names
        asked = None if names is None else names.classes[i]
        if names is None or asked is None:
            return False
        placed = [{asked.place(stored) for stored in own.values()} for own in names.stored]
        return all(own == placed[i] for own in placed)

    def _give_config(self) -> None:
        """Take the config from the model whose head is taken; a pooler is not a task's head."""
        heads = {stem: i for stem, i in self.head_owners.items() if stem != "pooler"}
        owners = dict.fromkeys((heads or self.head_owners).values())
        if len(owners) > 1:
            found = [f"{stem!r} of {self._reference(i)}" for stem, i in heads.items()]
            self.result.problems.append(
                f"the mix would take the heads {listed(found)} - a config names one class, with "
                "one task's head - leave the heads out (--head drop), or leave out one of the "
                "models"
            )
        elif owners and self.result.donor not in owners:
            self.result.donor = next(iter(owners))

    def _leave_donor_of(self, dropped: Sequence[str]) -> None:
        """Take the config from a model without the head: the owner's would add a random one."""
        without = [i for i, table in enumerate(self.tables) if not table.keys() & dropped]
        if without and self.result.donor not in without:
            self.result.donor = without[0]
            self.result.notes.append(
                f"without the head, config and tokenizer come from {self._reference(without[0])}"
            )

    def _head_stem(self, name: str) -> str | None:
        """The module above ``name`` that an ingredient lacks entirely, if it is a head.

        Heads are at the top beside the transformer (``classifier``, ``lm_head``), or are its
        pooler, or a whole part (a dense module).
        """
        if self.path != MAIN:
            return self.path
        stem = name.partition(".")[0]
        lacking = [table for table in self.tables if name not in table]
        if any(key == stem or key.startswith(f"{stem}.") for t in lacking for key in t):
            return None
        is_body = self.names is not None and stem != "pooler" and self.names.is_body(name)
        return None if is_body else stem

    def _settle_head(self, stem: str, names: list[str]) -> list[int]:
        """The ingredients to take a head from; empty where it is left out or refused."""
        owners = self._owners(names)
        who = listed([self._reference(i) for i in owners])
        what = f"the head {stem!r} ({counted(len(names), 'tensor')})"
        rule = self.recipe.head
        is_module = self.path != MAIN and self.path not in SIDE_TENSORS
        if rule == "drop" and is_module and self.result.donor in owners:
            donor = self._reference(self.result.donor)
            self.result.problems.append(
                f"{what} cannot be left out: modules.json comes from {donor}, which has it - every "
                "module named there must exist - put a model without it first, or take it "
                "whole with --head copy"
            )
            return []
        if rule == "drop":
            self.result.notes.append(f"{what} of {who} left out")
            return []
        if rule == "mix" and any(n not in self.tables[i] for n in names for i in owners):
            self.result.problems.append(
                f"{who} have different tensors under {what} - heads must match to be averaged - "
                "leave the head out (--head drop), or leave out one of the models"
            )
        elif rule == "mix" or (rule == "copy" and len(owners) == 1):
            how = "averaged over" if len(owners) > 1 else "copied whole from"
            self.result.notes.append(f"{what} {how} {who}")
            if self.path == MAIN and self.result.donor not in owners:
                self.head_owners[stem] = owners[0]
            elif self.path == MAIN:
                self.head_owners[stem] = self.result.donor
            elif is_module and self.result.donor not in owners:
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
