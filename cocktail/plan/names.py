"""Give the tensors of all ingredients common names, and those of the mix the names of one class.

The same transformer is saved with its class's prefix under a task head, and without it on its own;
older and newer versions of a class name its modules differently; and tied tensors may be stored
once or twice. Where the files of all ingredients agree, there is nothing to decide. Where they do
not, the classes that the configs name are asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cocktail.checkpoint.architecture import Architecture, architecture_of
from cocktail.checkpoint.model import MAIN, Checkpoint
from cocktail.checkpoint.prefixes import extra_prefix
from cocktail.checkpoint.ties import is_copy
from cocktail.tensors.info import TensorInfo
from cocktail.tensors.reading import equal_tensors

Table = dict[str, TensorInfo]

# Buffers that older versions of transformers saved, and that every version computes.
_COMPUTED = re.compile(r"(^|\.)(position_ids|inv_freq|masked_bias)$")
_CAUSAL_MASK = re.compile(r"\.attn(\.attention)?\.bias$")
_IN_LAYER = re.compile(r"(^|\.)\d+\.")


@dataclass
class Names:
    """The main tensors of K ingredients under common names.

    Attributes:
        tables: for each ingredient, its tensors by common name.
        stored: for each ingredient, its file's name of each tensor, by common name.
        classes: for each ingredient, its class, where it had to be asked and transformers has it.
        notes: what was decided, one line each.
    """

    tables: list[Table]
    stored: list[dict[str, str]]
    classes: list[Architecture | None] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def known_classes(self) -> list[Architecture]:
        return [architecture for architecture in self.classes if architecture is not None]

    def is_unknown(self, name: str) -> bool:
        """Whether the classes of all ingredients were asked, and none has such a tensor."""
        owners = [i for i, table in enumerate(self.tables) if name in table]
        return (
            bool(self.classes)
            and len(self.known_classes) == len(self.classes)
            and not any(c.place(self.stored[i][name]) for i in owners for c in self.known_classes)
        )

    def is_left_over(self, name: str) -> bool:
        """Whether the classes ignore a stored tensor that does not belong to a head."""
        if not self.is_unknown(name):
            return False
        owners = [i for i, table in enumerate(self.tables) if name in table]
        return any(
            c.is_ignored(self.stored[i][name]) or name.partition(".")[0] in c.body
            for i in owners
            for c in self.known_classes
        )

    def is_body(self, name: str) -> bool:
        """Whether the classes that were asked have it in their transformer, not in a head."""
        return any(c.has_prefix and c.prefix + name in c.shapes for c in self.known_classes) or (
            bool(self.known_classes) and all(name in c.shapes for c in self.known_classes)
        )

    def is_buffer(self, name: str) -> bool:
        """Whether the classes that were asked have it as a stored buffer, not a parameter."""
        return any(name in c.buffers or c.prefix + name in c.buffers for c in self.known_classes)

    def output(self, name: str, donor: int, *, has_head: bool) -> str:
        """The name of a tensor in the mix.

        Args:
            donor: the ingredient whose config the mix takes.
            has_head: whether the mix has tensors besides the transformer's own.
        """
        own = self.stored[donor]
        asked = self.classes[donor] if self.classes else None
        owner = next(table for table in (own, *self.stored) if name in table)
        if asked is None and name not in own and not _prefix(owner):
            return _prefix(own) + name  # only in the bare transformer, such as its pooler
        if asked is None or not asked.prefix or not self.is_body(name):
            return owner[name]
        with_prefix = any(stored.startswith(asked.prefix) for stored in own.values())
        if has_head and asked.has_prefix and not with_prefix:
            return asked.prefix + name
        if name in own:
            return own[name]
        return asked.prefix + name if with_prefix else name


def _prefix(stored: Mapping[str, str]) -> str:
    """The prefix that a file puts before the common names of a transformer's tensors."""
    found = (old.removesuffix(name) for name, old in stored.items() if old.endswith(name))
    return next(filter(None, found), "")


def common_names(ingredients: Sequence[Checkpoint]) -> Names:
    """Name the main tensors of all ingredients alike."""
    originals = [dict(checkpoint.parts[MAIN].tensors) for checkpoint in ingredients]
    names = Names(originals, [{name: name for name in table} for table in originals])
    computed = _leave_computed(names)
    if computed:
        names.notes.append(computed)
    alike = all(table.keys() == names.tables[0].keys() for table in names.tables)
    if alike and not any(True for _ in _twins(names.tables[0], ingredients[0].config)):
        return names
    names.classes = [architecture_of(checkpoint.config) for checkpoint in ingredients]
    if not alike:
        _rename(names, ingredients)
    _drop_copies(names, ingredients)
    return names


def _leave_computed(names: Names) -> str:
    """Leave out what every version of a class computes but only some ingredients store."""
    lacking = {
        name
        for table in names.tables
        for name, info in table.items()
        if _is_computed(name, info) and not all(name in other for other in names.tables)
    }
    for table in names.tables:
        for name in lacking & table.keys():
            del table[name]
    shown = sorted(lacking)[:3]
    more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
    return (
        f"{', '.join(shown)}{more}: left out, as the model computes it and only some store it"
        * (bool(lacking))
    )


def _is_computed(name: str, info: TensorInfo) -> bool:
    return bool(_COMPUTED.search(name)) or (
        bool(_CAUSAL_MASK.search(name)) and info.dtype in ("BOOL", "U8")
    )


def _rename(names: Names, ingredients: Sequence[Checkpoint]) -> None:
    """Give every table common names, from its class, or by fitting the other tables."""
    prefixes = [
        _rename_one(names, i, names.classes[i] or next(iter(names.known_classes), None))
        for i in range(len(ingredients))
    ]
    wanted = next((prefix for prefix in prefixes if prefix), None)
    for checkpoint, prefix in zip(ingredients, prefixes, strict=True):
        if wanted and not prefix:
            how = "by the names of its class" if prefix is None else f"with the prefix {wanted!r}"
            names.notes.append(f"tensors of {checkpoint.reference} were matched {how}")


def _rename_one(names: Names, i: int, asked: Architecture | None) -> str | None:
    """Rename one table; return its prefix, or ``None`` where more than a prefix differed."""
    table = names.tables[i]
    if asked is not None:
        new = {name: asked.common(name) for name in table}
    else:
        prefix = max((extra_prefix(table, other) for other in names.tables), key=len)
        new = {name: name.removeprefix(prefix) for name in table}
    if len(set(new.values())) < len(new):  # two stored tensors would become one of the class
        return ""
    names.tables[i] = {new[name]: info for name, info in table.items()}
    names.stored[i] = {new[name]: name for name in table}
    if not all(old.endswith(name) for old, name in new.items()):
        return None
    return next((old.removesuffix(name) for old, name in new.items() if old != name), "")


def _drop_copies(names: Names, ingredients: Sequence[Checkpoint]) -> None:
    """Leave out tensors that all ingredients tie to another, even where all of them store both: a
    method would make two different tensors of the two copies."""
    configs = [checkpoint.config for checkpoint in ingredients]
    for i, table in enumerate(names.tables):
        _restore_own(names, i, table, configs[i])
    everywhere = {name for name in names.tables[0] if all(name in t for t in names.tables)}
    for i, (checkpoint, table) in enumerate(zip(ingredients, names.tables, strict=True)):
        for name, own in list(_twins(table, checkpoint.config)):
            others = [k for k, other in enumerate(names.tables) if name in other]
            if own not in everywhere or not _is_tied(names, i, name, own, configs):
                continue
            if name in everywhere and not all(
                _is_tied(names, k, name, own, configs) and _are_twins(names.tables[k], name, own)
                for k in others
            ):
                continue
            whose = "" if name in everywhere else f" of {checkpoint.reference}"
            names.notes.append(f"{name}{whose}: left out, as it is tied to {own}")
            for k in others if name in everywhere else [i]:
                del names.tables[k][name]
            everywhere.discard(name)


def _restore_own(names: Names, i: int, table: Table, config: Mapping[str, Any]) -> None:
    """Restore the name of a tied tensor where only the copy's was saved, as some savers do."""
    asked = names.classes[i]
    if asked is None:
        return
    for name in [name for name in table if asked.own_of(name) not in (None, *table)]:
        own = str(asked.own_of(name))
        table[own] = table.pop(name)
        names.stored[i][own] = _own_stored(asked, names.stored[i].pop(name), name, own)


def _own_stored(asked: Architecture, stored: str, name: str, own: str) -> str:
    prefix = asked.prefix if asked.has_prefix else ""
    return stored.removesuffix(name) + own if stored != name else prefix + own


def _is_tied(
    names: Names, i: int, name: str, own: str, configs: Sequence[Mapping[str, Any]]
) -> bool:
    asked = names.classes[i]
    return is_copy(name, own, configs[i]) if asked is None else asked.is_copy(name, own)


def _twins(table: Table, config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Pairs of equal tensors outside the layers: matrices, or vectors with one number per token."""
    tokens = config.get("vocab_size")
    outside = [
        (name, info)
        for name, info in table.items()
        if not _IN_LAYER.search(name)
        and (len(info.shape) == 2 or (len(info.shape) == 1 and info.shape[0] == tokens))
    ]
    for name, info in outside:
        for other, source in outside:
            if name != other and name in table and _are_same(info, source):
                yield name, other


def _are_same(info: TensorInfo, other: TensorInfo) -> bool:
    return (info.shape, info.dtype) == (other.shape, other.dtype) and equal_tensors(info, other)


def _are_twins(table: Table, name: str, own: str) -> bool:
    return own in table and _are_same(table[name], table[own])
