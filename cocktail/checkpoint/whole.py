"""Open a checkpoint: what its tensors are and where they lie, without reading their data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from cocktail.checkpoint.architecture import Architecture, architecture_of
from cocktail.checkpoint.folder import has_config, module_folders, read_json
from cocktail.checkpoint.model import MAIN, Checkpoint, Part
from cocktail.checkpoint.ties import is_copy
from cocktail.checkpoint.weight_files import (
    INDEX,
    OTHER_FORMATS,
    SIDE_TENSORS,
    TENSOR_SUFFIXES,
    UNREAD_SUFFIXES,
    WHOLE,
    is_trainers,
)
from cocktail.checkpoint.wrappers import unwrapped
from cocktail.errors import CheckpointError, listed
from cocktail.tensors.headers import read_header
from cocktail.tensors.info import TensorInfo
from cocktail.tensors.pickled import read_pickled


def open_whole(text: str, folder: Path, commit: str | None) -> Checkpoint:
    """Open a model that is complete in itself, unlike an adapter.

    Args:
        text: the reference it is known by.

    Raises:
        CheckpointError: as for :func:`resolve`.
    """
    modules = module_folders(folder)
    parts = {MAIN: _weights(folder, modules[0])}
    if not parts[MAIN].tensors:
        raise CheckpointError(_no_weights(folder / modules[0]))
    config = {}
    if has_config(folder):
        config = read_json(folder / modules[0] / "config.json")
    parts[MAIN], notes = _without_wrapper(parts[MAIN], config, text)
    _require_data(parts[MAIN], folder / modules[0])
    parts[MAIN] = _settle_aliases(parts[MAIN], config)
    parts.update(module_parts(folder, modules))
    parts.update(_side_tensors(folder))
    return Checkpoint(text, folder, commit, config, parts, notes=notes)


def _without_wrapper(
    part: Part, config: Mapping[str, Any], reference: str
) -> tuple[Part, tuple[str, ...]]:
    names, wrapper = unwrapped([*part.tensors, *part.aliases], config)
    if not wrapper:
        return part, ()
    tensors = {names[name]: info for name, info in part.tensors.items()}
    aliases = {names[alias]: names[name] for alias, name in part.aliases.items()}
    note = f"{reference} was saved inside a wrapper: {wrapper} was removed from its tensors' names"
    return replace(part, tensors=tensors, aliases=aliases), (note,)


def _require_data(part: Part, folder: Path) -> None:
    """Refuse the placeholders that ZeRO-3 saves for tensors that other processes hold."""
    empty = [name for name, info in part.tensors.items() if info.numel == 0]
    if empty:
        raise CheckpointError(
            f"{folder}: {len(empty)} of {len(part.tensors)} tensors are empty "
            f"({listed(empty, 3)}) - training under ZeRO-3 saves these where weights are not "
            "gathered - run the zero_to_fp32.py that is saved beside such a checkpoint, or train "
            "with stage3_gather_16bit_weights_on_model_save"
        )


def module_parts(folder: Path, modules: list[str]) -> dict[str, Part]:
    """The modules after the first that have weights."""
    parts = {module: _settle_aliases(_weights(folder, module), {}) for module in modules[1:]}
    return {module: part for module, part in parts.items() if part.tensors}


def _settle_aliases(part: Part, config: Mapping[str, Any]) -> Part:
    """Among names that share memory in a pickled file, leave out those that the model ties.

    A loader looks for the others, whatever memory they were saved from.
    """
    if not part.aliases:
        return part
    architecture = architecture_of(config)
    groups = {name: [name] for name in part.tensors}
    for alias, name in part.aliases.items():
        groups[name].append(alias)
    tensors: dict[str, TensorInfo] = {}
    aliases: dict[str, str] = {}
    for first, names in groups.items():
        for name in names:
            own = next((o for o in names if _is_filled_from(name, o, config, architecture)), None)
            if own is not None:
                aliases[name] = own
            else:
                info = part.tensors[first]
                tensors[name] = info if name == first else replace(info, name=name)
    return replace(part, tensors=tensors, aliases=aliases)


def _is_filled_from(
    name: str, other: str, config: Mapping[str, Any], architecture: Architecture | None
) -> bool:
    if architecture is None:
        return is_copy(name, other, config)
    return architecture.is_copy(architecture.common(name), architecture.common(other))


def _weights(folder: Path, relative: str) -> Part:
    """Find the weights in one folder, in transformers' order of preference."""
    place = folder / relative
    for single in WHOLE:
        index = place / f"{single}{INDEX}"
        if (place / single).is_file():
            tensors, aliases = read_tensor_file(place / single)
        elif index.is_file():
            tensors, aliases = _read_shards(index)
        else:
            continue
        renamed = {_current_name(name): info for name, info in tensors.items()}
        others = {_current_name(alias): _current_name(name) for alias, name in aliases.items()}
        return Part(relative, None, renamed, others)
    return Part(relative, None, {}, {})


def _current_name(name: str) -> str:
    """BERT checkpoints converted from TensorFlow call the norm's weights gamma and beta."""
    stem, _, last = name.rpartition(".")
    if stem.endswith("LayerNorm") and last in ("gamma", "beta"):
        return f"{stem}.{'weight' if last == 'gamma' else 'bias'}"
    return name


def read_tensor_file(path: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """The tensors of one file by name, and the names that share another's memory."""
    if path.suffix == ".safetensors":
        return read_header(path)[0], {}
    pickled = read_pickled(path)
    return pickled.tensors, pickled.aliases


def _read_shards(index: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise CheckpointError(f"{index}: has no weight_map of names to files - repair the file")
    shards = sorted(set(weight_map.values()))
    outside = [repr(n) for n in shards if PurePosixPath(n).name != n or not n or "\0" in n]
    if outside:
        raise CheckpointError(
            f"{index}: names {listed(outside)} - shards must lie beside their index - repair the "
            "file"
        )
    missing = [name for name in shards if not (index.parent / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{index}: {len(missing)} of {len(shards)} shards are missing ({listed(missing)}) - "
            "copy or download them"
        )
    tensors: dict[str, TensorInfo] = {}
    aliases: dict[str, str] = {}
    for name in shards:
        found, found_aliases = read_tensor_file(index.parent / name)
        wrong = [key for key in (*found, *found_aliases) if weight_map.get(key) != name]
        if wrong:
            raise CheckpointError(
                f"{index}: {name} holds {listed(wrong)}, which the index places elsewhere - the "
                "index and the shards are of different saves - save the model again"
            )
        tensors |= found
        aliases |= found_aliases
    lost = [key for key in weight_map if key not in tensors and key not in aliases]
    if lost:
        raise CheckpointError(
            f"{index}: lists {listed(lost)}, which no shard holds - the index and the shards are "
            "of different saves - save the model again"
        )
    return tensors, aliases


def _side_tensors(folder: Path) -> dict[str, Part]:
    """Tensors in files of their own at the top of the folder."""
    parts = {}
    for path in sorted(folder.iterdir()):
        if path.name in SIDE_TENSORS:
            tensors, aliases = read_tensor_file(path)
            parts[path.name] = _settle_aliases(Part("", path.name, tensors, aliases), {})
        elif (
            path.suffix in TENSOR_SUFFIXES
            and not is_trainers(path.name)
            and not path.name.startswith(OTHER_FORMATS)
        ):
            raise CheckpointError(
                f"{path}: is a tensor file with no known place in the model - a mix consists of "
                "the model's own weights, sentence-transformers modules and "
                f"{', '.join(SIDE_TENSORS)} - move the file away, and back beside the mix if it "
                "belongs there"
            )
    return parts


def _no_weights(folder: Path) -> str:
    if not folder.is_dir():
        return (
            f"{folder}: does not exist, but modules.json says the model is there - the folder is "
            "incomplete - copy or download it again"
        )
    others = [p.name for p in sorted(folder.iterdir()) if p.suffix in UNREAD_SUFFIXES]
    found = f"only {listed(others)}" if others else "no weights"
    return (
        f"{folder}: has {found} - weights must be model.safetensors, its shards with an index, or "
        "pytorch_model*.bin - save the model with save_pretrained()"
    )
