"""What a model's transformers class says about its tensors: names, prefix, ties and leftovers.

Asking builds the class on the meta device, where nothing has data. That imports torch and
transformers, which takes seconds, so it is done only where names alone do not decide. Whatever the
class's source text shows is read from there, without importing anything.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_PREFIX = re.compile(r"base_model_prefix(?::\s*\w+)?\s*=\s*[\"'](\w*)[\"']")
_TIES = re.compile(r"\btie_word_embeddings[^=\n(]*=\s*(True|False)\b")
_LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers")
_FIRST_NUMBER = re.compile(r"^(?P<stack>[^\d]*?\.?)(?P<number>\d+)\.")


@dataclass(frozen=True)
class Architecture:
    """The tensors of one class for one config.

    Attributes:
        name: the name of the class.
        prefix: what the names of its transformer's tensors begin with under a head, such as
            ``bert.``.
        shapes: those of all parameters and stored buffers, by name in the class.
        buffers: the names of tensors that are not trained, as the class can compute them itself.
        ties: maps each name that the class fills from another tensor to that tensor's name.
        ignored: patterns of stored names that the class ignores when it loads.
        rename: maps a name in a file to the class's form of it, and to the tensor that it ends up
            in, which differs where the class fuses several stored tensors into one.
        joined: for each kind of fused tensor, the patterns of the stored names in their order.
        transposed: parameters that hold matrices as (in, out), where the class says so.
    """

    name: str
    prefix: str
    shapes: Mapping[str, tuple[int, ...]]
    buffers: Collection[str]
    ties: Mapping[str, str]
    ignored: tuple[re.Pattern[str], ...]
    rename: Callable[[str], tuple[str, str]]
    joined: tuple[tuple[str, ...], ...] = ()
    transposed: Collection[str] = frozenset()

    @cached_property
    def has_prefix(self) -> bool:
        """Whether this class holds its transformer under the prefix, beside a head."""
        return bool(self.prefix) and any(name.startswith(self.prefix) for name in self.shapes)

    @cached_property
    def body(self) -> frozenset[str]:
        """The first components of the transformer's own names, without the prefix."""
        own = [name for name in self.shapes if not self.has_prefix or name.startswith(self.prefix)]
        return frozenset(name.removeprefix(self.prefix).partition(".")[0] for name in own)

    def place(self, stored: str) -> str | None:
        """The tensor of the class that a stored one fills, or ``None``."""
        return self._known(self.rename(stored)[1])

    def common(self, stored: str) -> str:
        """The unprefixed name that a stored tensor has in every class with this transformer."""
        renamed, target = self.rename(stored)
        if renamed == target:
            renamed = self._known(renamed) or renamed
        return renamed.removeprefix(self.prefix)

    def unfilled(self, stored: Collection[str]) -> list[str]:
        """The parameters that no stored tensor fills: a loader would initialise them at random."""
        filled = {self._own(place) for name in stored if (place := self.place(name))}
        return [
            name
            for name in self.shapes
            if name not in self.buffers and self._own(name) not in filled
        ]

    def is_copy(self, name: str, other: str) -> bool:
        """Whether the class fills one tensor from another, both named as by :meth:`common`."""
        return name != other and self.own_of(name) == other

    def own_of(self, name: str) -> str | None:
        """The tensor that the class fills another from, both named as by :meth:`common`."""
        return self._common_ties.get(name)

    @cached_property
    def _common_ties(self) -> dict[str, str]:
        return {
            name.removeprefix(self.prefix): own.removeprefix(self.prefix)
            for name, own in self.ties.items()
        }

    def _own(self, name: str) -> str:
        return self.ties.get(name, name)

    def is_ignored(self, stored: str) -> bool:
        """Whether the class declares that it ignores a stored tensor."""
        return any(pattern.search(stored) for pattern in self.ignored)

    def _known(self, name: str) -> str | None:
        for candidate in (name, name.removeprefix(self.prefix), self.prefix + name):
            if candidate in self.shapes:
                return candidate
        return None


def architecture_of(config: Mapping[str, Any]) -> Architecture | None:
    """Ask the class that a ``config.json`` names, or the bare transformer where it names none.

    Returns:
        ``None`` for a class that transformers does not have, such as custom code, or that cannot be
        built from this config.
    """
    if "auto_map" in config or not config.get("model_type"):
        return None
    return _asked(json.dumps(dict(config), sort_keys=True, default=str))


@lru_cache(maxsize=32)
def _asked(text: str) -> Architecture | None:
    model = _empty_model(json.loads(text, object_hook=_number))
    if model is None:
        return None
    names = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    parameters = {
        name
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if parameter.requires_grad
    } - set(getattr(model, "_keys_to_ignore_on_save", None) or ())
    prefix = getattr(model, "base_model_prefix", "") or ""
    patterns = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    if isinstance(patterns, str):  # in transformers 4, by mistake
        patterns = (patterns,)
    rename, joined = _renaming(model)
    transposed = {
        f"{path}.{name}"
        for path, module in model.named_modules()
        if getattr(module, "is_transposed", False)
        for name, _ in module.named_parameters(recurse=False)
    }
    return Architecture(
        type(model).__name__,
        f"{prefix}." if prefix else "",
        names,
        frozenset(names.keys() - parameters),
        _ties(model),
        tuple(re.compile(pattern) for pattern in sorted(patterns)),
        rename,
        joined,
        frozenset(transposed),
    )


def _number(value: dict[str, Any]) -> Any:
    """Decode what transformers 5 writes for a number that JSON lacks: ``{"__float__": "NaN"}``."""
    return float(value["__float__"]) if value.keys() == {"__float__"} else value


def _empty_model(config: dict[str, Any]) -> Any:
    import torch  # noqa: PLC0415 - seconds to import
    import transformers  # noqa: PLC0415

    # Packed weights have other names, which the plan refuses before anything else.
    config.pop("quantization_config", None)
    known = transformers.models.auto.configuration_auto.CONFIG_MAPPING
    if config["model_type"] not in known:
        return None
    names = config.get("architectures")
    named = (
        getattr(transformers, str(names[0]), None) if isinstance(names, list) and names else None
    )
    if names and named is None:
        return None
    try:
        with _quiet(transformers), torch.device("meta"):
            made = known[config["model_type"]].from_dict(config)
            if named is None:
                return transformers.AutoModel.from_config(made)
            return named(made)
    except Exception:  # a config may be any JSON, and every class fails on it in its own way
        return None


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    logging = transformers.utils.logging
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _ties(model: Any) -> dict[str, str]:
    """Map each name that shares a parameter to the one that the class fills it from."""
    stated = getattr(model, "all_tied_weights_keys", None)
    if isinstance(stated, dict):  # transformers 5
        ties = dict(stated)
        while any(own in ties for own in ties.values()):
            ties = {name: ties.get(own, own) for name, own in ties.items()}
        return ties
    model.tie_weights()
    copies = [
        re.compile(pattern)
        for module in model.modules()
        for pattern in getattr(module, "_tied_weights_keys", None) or ()
    ]
    groups: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        groups.setdefault(id(tensor), []).append(name)
    ties = {}
    for names in groups.values():
        own = [name for name in names if not any(copy.search(name) for copy in copies)]
        first = (own or names)[0]
        ties |= {name: first for name in names if name != first}
    return ties


def _renaming(
    model: Any,
) -> tuple[Callable[[str], tuple[str, str]], tuple[tuple[str, ...], ...]]:
    """How the loader of the installed transformers renames and joins what it finds in files."""
    try:
        from transformers import conversion_mapping, core_model_loading  # noqa: PLC0415
    except ImportError:  # transformers 4
        old = getattr(model, "_checkpoint_conversion_mapping", None) or {}
        return lambda name: (_old_name(name, old),) * 2, ()
    transforms = conversion_mapping.get_model_conversion_mapping(model)
    converters = [t for t in transforms if isinstance(t, core_model_loading.WeightConverter)]
    renamings = [t for t in transforms if not isinstance(t, core_model_loading.WeightConverter)]

    def rename(name: str) -> tuple[str, str]:
        for renaming in renamings:
            name = renaming.rename_source_key(name)[0]
        for converter in converters:
            target, match = converter.rename_source_key(name)
            if match is not None:
                return name, target
        return name, name

    return rename, tuple(tuple(converter.source_patterns) for converter in converters)


def _old_name(name: str, mapping: Mapping[str, str]) -> str:
    for pattern, replacement in mapping.items():
        plain = re.sub(r"\(.*\)", "", replacement.lstrip("^"))
        renamed, count = re.subn(pattern, plain, name)
        if count:
            return renamed
    return name


def looks_loadable(names: Collection[str], config: Mapping[str, Any]) -> bool:
    """Whether names look like those of the config's class, as far as its source text tells.

    A wrapper around the whole model shows as a first component that the class does not have, or
    that appears twice; missing layers show as a count that differs from the config's. True where
    there is no source to look at.
    """
    text = _source(config, "modeling")
    if not text or not names:
        return True
    firsts = {name.partition(".")[0] for name in names}
    if not all(re.search(rf"\bself\.{re.escape(first)}\b", text) for first in firsts):
        return False
    if len(firsts) == 1:
        (first,) = firsts
        seconds = {name.split(".")[1] for name in names if "." in name}
        if first not in _PREFIX.findall(text) or first in seconds:
            return False
    return _has_all_layers(names, config)


def _has_all_layers(names: Collection[str], config: Mapping[str, Any]) -> bool:
    counts: dict[str, int] = {}
    for match in filter(None, map(_FIRST_NUMBER.match, names)):
        stack, number = match["stack"], int(match["number"])
        counts[stack] = max(counts.get(stack, 0), number + 1)
    wanted = layer_count(config)
    return not counts or wanted is None or wanted in counts.values()


def layer_count(config: Mapping[str, Any]) -> int | None:
    """The number of layers that a config states, or ``None``."""
    found = [config[key] for key in _LAYER_COUNTS if isinstance(config.get(key), int)]
    return found[0] if found else None


def default_ties(config: Mapping[str, Any]) -> bool | None:
    """Whether a model ties its output embedding to the input's where its config does not say.

    Returns:
        ``None`` where its class is not known, or where custom code may do either.
    """
    if "auto_map" in config or not config.get("model_type"):
        return None
    found = set(_TIES.findall(_source(config, "configuration")))
    if len(found) == 1:
        return found == {"True"}
    import transformers  # noqa: PLC0415 - seconds to import

    known = transformers.models.auto.configuration_auto.CONFIG_MAPPING
    if config["model_type"] not in known:
        return None
    try:
        return bool(known[config["model_type"]]().tie_word_embeddings)
    except Exception:  # some configs have no defaults
        return None


def _source(config: Mapping[str, Any], kind: str) -> str:
    """The text of the module that holds a model type's classes; empty where there is none."""
    if "auto_map" in config:
        return ""
    return _source_of(str(config.get("model_type") or "").replace("-", "_"), kind)


@lru_cache(maxsize=32)
def _source_of(model_type: str, kind: str) -> str:
    spec = find_spec("transformers")
    if not re.fullmatch(r"\w+", model_type) or spec is None:
        return ""
    folders = model_type, model_type.rpartition("_")[0]  # openai_gpt is kept under openai
    for place in spec.submodule_search_locations or ():
        for folder in filter(None, folders):
            path = Path(place, "models", folder, f"{kind}_{folder}.py")
            if path.is_file():
                return path.read_text(encoding="utf-8")
    return ""
