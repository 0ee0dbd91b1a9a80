"""Open a checkpoint: what its tensors are and where they lie, without reading their data."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from cocktail.plan.configs import is_copy
from cocktail.errors import CheckpointError, listed
from cocktail.tensors.headers import TensorInfo, is_text, read_header
from cocktail.checkpoint.hub import SIDE_TENSORS, fetch, parse_identifier
from cocktail.tensors.pickled import read_pickled

if TYPE_CHECKING:
    from cocktail.checkpoint.adapter.view import View

MAIN = ""
"""The part of a checkpoint that is the transformers model itself."""

# What a trainer leaves beside the weights; none of it belongs to the model.
_TRAINER_STATE = ("training_args.bin", "optimizer", "scheduler", "rng_state", "scaler", "trainer_")
_OTHER_FORMATS = ("consolidated", "tf_model", "flax_model", "rust_model", "pytorch_model", "model")


@dataclass(frozen=True)
class Part:
    """A set of tensors that is stored together: the model, a dense module, a side tensor file.

    Attributes:
        folder: relative to the checkpoint, ``""`` for its top.
        file: the name of the file for side tensors (``sparse_linear.pt``), else ``None``.
        tensors: by name, in file order.
        aliases: names left out because the model ties them to another of ``tensors``.
    """

    folder: str
    file: str | None
    tensors: Mapping[str, TensorInfo]
    aliases: Mapping[str, str]


@dataclass(frozen=True)
class Adaption:
    """What an ingredient that is an adapter on its base was opened from.

    Attributes:
        base: the whole model underneath.
        adapter: the adapter's reference, with its commit if it comes from the Hub.
        folder: of the adapter.
        view: shows the files of both as those of one model.
        notes: what was decided, one line each.
    """

    base: Checkpoint
    adapter: str
    folder: Path
    view: View
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Checkpoint:
    """One ingredient.

    Attributes:
        reference: as the user gave it.
        folder: where its config, tokenizer and modules lie on disk.
        commit: the commit on the Hub, ``None`` for a local folder or an adapter.
        config: its ``config.json``.
        parts: the model under ``MAIN``, others under their path.
        adaption: for an adapter on its base, whose tensors carry the adapter's changes.
    """

    reference: str
    folder: Path
    commit: str | None
    config: Mapping[str, Any]
    parts: Mapping[str, Part]
    adaption: Adaption | None = None

    @property
    def pinned(self) -> str:
        """A reference that opens the same files again: with the commits of what is on the Hub."""
        if self.adaption is not None:
            return f"{self.adaption.base.pinned}+{self.adaption.adapter}"
        return with_commit(self.reference, self.commit)

    @property
    def origins(self) -> dict[str, Path]:
        """The folders that it was read from, by their references."""
        if self.adaption is None:
            return {self.reference: self.folder}
        return {**self.adaption.base.origins, self.adaption.adapter: self.adaption.folder}

    @property
    def main_folder(self) -> Path:
        """Where ``config.json`` and the model's weights lie."""
        return self.folder / self.parts[MAIN].folder

    def __iter__(self) -> Iterator[tuple[str, TensorInfo]]:
        """All tensors with a key that is unique over the parts."""
        for path, part in self.parts.items():
            for name, info in part.tensors.items():
                yield tensor_key(path, name), info


def tensor_key(part: str, name: str) -> str:
    """How messages and digests name a tensor: the parts beside the model carry their path."""
    return name if part == MAIN else f"{part}:{name}"


def with_commit(reference: str, commit: str | None) -> str:
    """The reference with the commit in place of its revision."""
    return reference if commit is None else f"{reference.partition('@')[0]}@{commit}"


def resolve(reference: str | Path) -> Checkpoint:
    """Open a checkpoint, from the headers of its files alone.

    Args:
        reference: a local folder (one safetensors file, shards with an index, or
            ``pytorch_model*.bin``), a Hub id ``org/name[@revision]``, either of them with a PEFT
            adapter, or ``BASE+ADAPTER``.

    Raises:
        CheckpointError: there is no such folder or model, its files are damaged or contradict
            each other, or they hold tensors whose place in the model is not known; the adapter is
            of a type that cannot be added, or does not fit its base.
    """
    from cocktail.checkpoint.adapter.open import is_adapter, open_adapter, split_pair  # noqa: PLC0415 - a cycle

    text = str(reference)
    if not is_text(text):
        raise CheckpointError(
            f"{text!r}: is a path that is not UTF-8 - the mix records where its models came from - "
            "rename the folder"
        )
    pair = split_pair(text)
    if pair is not None:
        return open_adapter(text, *pair)
    folder, commit = locate(text)
    if is_adapter(folder):
        return open_adapter(text, None, text)
    return open_whole(text, folder, commit)


def locate(text: str) -> tuple[Path, str | None]:
    """Find a local folder, or fetch a model from the Hub.

    Returns:
        The folder, and the commit if it is the Hub's.

    Raises:
        CheckpointError: there is no such folder or model, or no access to it.
    """
    local = local_folder(text)
    if local is not None:
        return local, None
    identifier = parse_identifier(text)
    is_file = os.path.exists(os.path.expanduser(text))  # noqa: PTH110, PTH111
    if identifier is None or is_file:
        found = "is a file" if is_file else "does not exist"
        raise CheckpointError(
            f"{text}: {found} - a model is a folder with config.json and weights, or a Hub id "
            "org/name[@revision] - check the path"
        )
    folder = fetch(*identifier)
    return folder, folder.name


def local_folder(text: str) -> Path | None:
    """The folder of that name, ``~`` being home; ``None`` if there is none."""
    path = os.path.expanduser(text)  # noqa: PTH111 - pathlib raises where there is no such home
    return Path(path) if os.path.isdir(path) else None  # noqa: PTH112 - and at names too long


def open_whole(text: str, folder: Path, commit: str | None) -> Checkpoint:
    """Open a model that needs no other.

    Args:
        text: the reference it is known by.

    Raises:
        CheckpointError: as for :func:`resolve`.
    """
    modules = module_folders(folder)
    parts = {MAIN: _weights(folder, modules[0])}
    if not parts[MAIN].tensors:
        raise CheckpointError(_no_weights(folder / modules[0]))
    config = read_json(folder / modules[0] / "config.json")
    parts[MAIN] = _settle_aliases(parts[MAIN], config)
    parts.update(module_parts(folder, modules))
    parts.update(_side_tensors(folder))
    return Checkpoint(text, folder, commit, config, parts)


def module_parts(folder: Path, modules: list[str]) -> dict[str, Part]:
    """The modules after the first that have weights."""
    parts = {module: _settle_aliases(_weights(folder, module), {}) for module in modules[1:]}
    return {module: part for module, part in parts.items() if part.tensors}


def _settle_aliases(part: Part, config: Mapping[str, Any]) -> Part:
    """Leave out of the names that share memory in a pickled file those that the model ties.

    A loader looks for the others, whatever memory they were saved from.
    """
    groups = {name: [name] for name in part.tensors}
    for alias, name in part.aliases.items():
        groups[name].append(alias)
    tensors: dict[str, TensorInfo] = {}
    aliases: dict[str, str] = {}
    for first, names in groups.items():
        for name in names:
            own = next((other for other in names if is_copy(name, other, config)), None)
            if own is not None:
                aliases[name] = own
            else:
                info = part.tensors[first]
                tensors[name] = info if name == first else replace(info, name=name)
    return replace(part, tensors=tensors, aliases=aliases)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: the file is missing, no UTF-8 JSON, or not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path.parent}: has no {path.name} - a model folder holds one - save the model with "
            "save_pretrained()"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is not valid JSON ({error}) - repair the file") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: is not a JSON object - repair the file")
    return value


def module_folders(folder: Path) -> list[str]:
    """The folders of a sentence-transformers model, its transformer first; ``[""]`` for others."""
    path = folder / "modules.json"
    if not path.is_file():
        return [""]
    try:
        modules = json.loads(path.read_text(encoding="utf-8"))
        folders = [module["path"] for module in modules]
        if not all(isinstance(name, str) for name in folders):
            raise TypeError("a path is no text")
    except (ValueError, KeyError, TypeError, RecursionError, OSError) as error:
        raise CheckpointError(
            f"{path}: cannot be understood ({type(error).__name__}: {error}) - it lists the "
            "modules of a sentence-transformers model - repair or remove it"
        ) from None
    for name in folders:
        if not _stays_inside(name):
            raise CheckpointError(
                f"{path}: names the folder {name!r} - modules lie inside the model's folder - "
                "repair the file"
            )
    if not folders:
        raise CheckpointError(f"{path}: lists no module - repair or remove it")
    return folders


def _stays_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "\0" not in name


def _weights(folder: Path, relative: str) -> Part:
    """Find the weights in one folder, in the order of preference that transformers has."""
    place = folder / relative
    for single in ("model.safetensors", "pytorch_model.bin"):
        index = place / f"{single}.index.json"
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
        raise CheckpointError(f"{index}: has no weight_map from names to files - repair the file")
    shards = sorted(set(weight_map.values()))
    outside = [repr(n) for n in shards if PurePosixPath(n).name != n or not n or "\0" in n]
    if outside:
        raise CheckpointError(
            f"{index}: names {listed(outside)} - shards lie beside their index - repair the file"
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
        elif path.suffix in (".pt", ".pth", ".bin", ".safetensors") and not path.name.startswith(
            (*_TRAINER_STATE, *_OTHER_FORMATS)
        ):
            raise CheckpointError(
                f"{path}: is a tensor file whose place in the model is not known - mixed are the "
                f"model's own weights, sentence-transformers modules and {', '.join(SIDE_TENSORS)} "
                "- move the file away, and back beside the mix if it belongs there"
            )
    return parts


def _no_weights(folder: Path) -> str:
    if not folder.is_dir():
        return (
            f"{folder}: does not exist, and modules.json has the model there - the folder is "
            "incomplete - copy or download it again"
        )
    others = [p.name for p in sorted(folder.iterdir()) if p.suffix in (".gguf", ".h5", ".msgpack")]
    found = f"only {listed(others)}" if others else "no weights"
    return (
        f"{folder}: has {found} - read are model.safetensors, its shards with an index, and "
        "pytorch_model*.bin - save the model with save_pretrained()"
    )
