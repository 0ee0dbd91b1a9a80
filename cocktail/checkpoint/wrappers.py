"""Remove the prefixes that training wrappers add to all names: ``module.``, ``_orig_mod.``, ..."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from cocktail.checkpoint.architecture import Architecture, architecture_of, looks_loadable

# The wrappers of torch.compile, FSDP, activation checkpointing and DeepSpeed around any module.
_MARKS = re.compile(
    r"(^|(?<=\.))(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\."
)
_DATA_PARALLEL = "module."


def unwrapped(names: Collection[str], config: Mapping[str, Any]) -> tuple[dict[str, str], str]:
    """Find the names that a model's tensors have in its class.

    Wrappers of torch and DeepSpeed are known by name. Any other prefix is removed if all names
    share it and the class that the config names can load more of them without it.

    Returns:
        The new name of each, and what was removed; empty where nothing was.
    """
    found = {name: _MARKS.sub("", name) for name in names}
    taken = {mark for name in names for _, mark in _MARKS.findall(name)}
    prefix = ""
    while found and all(name.startswith(_DATA_PARALLEL) for name in found.values()):
        found = {name: new.removeprefix(_DATA_PARALLEL) for name, new in found.items()}
        prefix += _DATA_PARALLEL
    if not looks_loadable(found.values(), config):
        own = _own_wrapper(list(found.values()), config)
        found = {name: new.removeprefix(own) for name, new in found.items()}
        prefix += own
    if len(set(found.values())) < len(found):
        return {name: name for name in names}, ""
    marks = [f"{mark}." for mark in sorted(taken)]
    return found, ", ".join([*marks, *([prefix] if prefix else [])])


def _own_wrapper(names: list[str], config: Mapping[str, Any]) -> str:
    """The shared prefix whose removal lets the class load the most names."""
    prefixes = ["", *_shared_prefixes(names)]
    architecture = architecture_of(config) if len(prefixes) > 1 else None
    if architecture is None:
        return ""
    return max(prefixes, key=lambda prefix: _loaded(names, prefix, architecture))


def _loaded(names: list[str], prefix: str, architecture: Architecture) -> tuple[int, int]:
    """How many names the class loads without a prefix, and how many match without renaming."""
    bare = [name.removeprefix(prefix) for name in names]
    placed = sum(architecture.place(name) is not None for name in bare)
    return placed, sum(name in architecture.shapes for name in bare)


def _shared_prefixes(names: list[str]) -> Iterator[str]:
    """``a.``, ``a.b.``, ... for as long as all names begin with them."""
    prefix = ""
    for component in names[0].split(".")[:-1] if names else ():
        prefix += f"{component}."
        if not all(name.startswith(prefix) for name in names):
            return
        yield prefix
