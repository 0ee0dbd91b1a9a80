"""Match what an adapter changes of parameters that have no layer of their own: experts' matrices.

PEFT wraps the module that holds them once for each of its ``target_parameters``, the last
outermost, and names the matrices after the wrappers. Files may hold the parameter as the class
does, or a matrix for each expert, which the class joins when it loads.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from cocktail.checkpoint.adapter.config import LoraConfig
from cocktail.checkpoint.architecture import Architecture, architecture_of
from cocktail.checkpoint.model import Checkpoint
from cocktail.errors import CheckpointError, listed
from cocktail.tensors.dtypes import FLOATING
from cocktail.tensors.info import TensorInfo
from cocktail.tensors.lowrank import LowRank

_WRAPPER = ".base_layer"
_NUMBER = re.compile(r"\.(\d+)(?=\.)")


@dataclass
class ChangedParameters:
    """The base's tensors that make up targeted parameters, with their changes.

    Attributes:
        modules: the adapter's modules that are accounted for.
        changed: by name in the base.
        misfits: what does not fit, with its shapes.
    """

    modules: set[str] = field(default_factory=set)
    changed: dict[str, TensorInfo] = field(default_factory=dict)
    misfits: list[str] = field(default_factory=list)


def changed_parameters(
    checkpoint: Checkpoint,
    tensors: Mapping[str, TensorInfo],
    matrices: Mapping[str, Mapping[str, TensorInfo]],
    lora: LoraConfig,
    adapter: str,
) -> ChangedParameters:
    """Find the tensors that an adapter's ``target_parameters`` are stored in.

    Args:
        checkpoint: the base.
        tensors: its tensors, by name.
        matrices: by module of the adapter, its tensors by kind.
        adapter: what messages call the adapter.

    Raises:
        CheckpointError: transformers does not know the base's class, which alone says which
            parameter a matrix changes, or the class has no such parameters.
    """
    found = ChangedParameters()
    if not lora.target_parameters:
        return found
    asked = architecture_of(checkpoint.config)
    if asked is None:
        raise CheckpointError(
            f"{adapter}: uses target_parameters, and transformers does not know the class of "
            f"{checkpoint.reference} - the class says which parameter a matrix changes - merge the "
            "adapter with merge_and_unload(), and save that"
        )
    places: dict[str, list[str]] = {}
    for name in tensors:
        places.setdefault(asked.place(name) or "", []).append(name)
    for module, kinds in matrices.items():
        parameter = _parameter_of(module, asked, lora)
        if parameter is None:
            continue
        found.modules.add(module)
        stored = {name: tensors[name] for name in places.get(parameter, ())}
        problem = _problem(parameter, asked, stored, kinds, lora)
        if problem:
            found.misfits.append(f"{parameter}: {problem}")
            continue
        for name, delta in _deltas(parameter, asked, stored, kinds, lora):
            found.changed[name] = replace(tensors[name], delta=delta)
    if not found.modules:
        raise CheckpointError(
            f"{adapter}: changes the parameters {listed(lora.target_parameters)}, which "
            f"{checkpoint.reference} lacks - an adapter is added to the model it was trained on - "
            f"name that one: BASE+{adapter}"
        )
    return found


def _parameter_of(module: str, asked: Architecture, lora: LoraConfig) -> str | None:
    """The class's name of the parameter that a wrapper changes."""
    path = module.replace(_WRAPPER, "").removeprefix(asked.prefix)
    wrapped = [
        name
        for name in asked.shapes
        if name.removeprefix(asked.prefix).rpartition(".")[0] == path and lora.targets(name)
    ]
    depth = module.count(_WRAPPER)
    return wrapped[-1 - depth] if depth < len(wrapped) else None


def _problem(
    parameter: str,
    asked: Architecture,
    stored: Mapping[str, TensorInfo],
    kinds: Mapping[str, TensorInfo],
    lora: LoraConfig,
) -> str:
    """What keeps the matrices from being added; empty where nothing does."""
    if kinds.keys() != {"A", "B"}:
        return f"holds {', '.join(sorted(kinds))} where A, B belong"
    shape, a, b = asked.shapes[parameter], kinds["A"].shape, kinds["B"].shape
    if len(shape) not in (2, 3) or len(a) != 2 or len(b) != 2:
        return f"A {list(a)} and B {list(b)} for {list(shape)}"
    experts, rank = (shape[0] if len(shape) == 3 else 1), lora.rank_of(parameter)
    fits = a[0] == b[1] == experts * rank and {a[1], b[0]} == set(shape[-2:])
    if not fits:
        return f"A {list(a)} and B {list(b)} of rank {rank} for {list(shape)}"
    if any(info.dtype not in FLOATING for info in (*stored.values(), *kinds.values())):
        return "not floating-point"
    shapes = [info.shape for info in stored.values()]
    whole = shapes == [shape]
    apart = (
        len(shape) == 3
        and not _is_transposed(parameter, asked, kinds)
        and all(len(one) == 2 and one[1] == shape[2] for one in shapes)
        and sum(one[0] for one in shapes) == experts * shape[1]
    )
    return (
        ""
        if whole or apart
        else f"{list(shape)} for {listed([str(list(one)) for one in shapes], 3) or 'nothing'}"
    )


def _deltas(
    parameter: str,
    asked: Architecture,
    stored: Mapping[str, TensorInfo],
    kinds: Mapping[str, TensorInfo],
    lora: LoraConfig,
) -> Iterator[tuple[str, LowRank]]:
    """Each stored tensor of a parameter with its share of the change, in the class's order."""
    shape, first = asked.shapes[parameter], 0
    for name in sorted(stored, key=lambda name: _position(name, asked)):
        yield (
            name,
            LowRank(
                kinds["A"],
                kinds["B"],
                lora.scale_of(parameter),
                _is_transposed(parameter, asked, kinds),
                experts=shape[0] if len(shape) == 3 else 1,
                first=first,
            ),
        )
        first += stored[name].shape[0]


def _is_transposed(parameter: str, asked: Architecture, kinds: Mapping[str, TensorInfo]) -> bool:
    """Whether the parameter holds its matrices as (in, out)."""
    rows, cols = asked.shapes[parameter][-2:]
    if rows == cols:  # the shapes do not tell
        return parameter in asked.transposed
    return kinds["A"].shape[1] == rows


def _position(name: str, asked: Architecture) -> tuple[int, int]:
    """The expert that a stored tensor belongs to, and its place among that expert's matrices."""
    renamed, _ = asked.rename(name)
    numbers = _NUMBER.findall(renamed)
    for patterns in asked.joined:
        for place, pattern in enumerate(patterns):
            if "*" in pattern and renamed.endswith(pattern.rpartition("*")[2]):
                return int(numbers[-1]), place
    return 0, 0
