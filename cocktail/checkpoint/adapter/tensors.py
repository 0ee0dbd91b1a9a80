"""Match an adapter's tensors with its base's, and say what does not fit."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cocktail.checkpoint.adapter.config import LoraConfig
from cocktail.checkpoint.adapter.parameters import changed_parameters
from cocktail.checkpoint.architecture import architecture_of
from cocktail.checkpoint.model import MAIN, Checkpoint
from cocktail.checkpoint.prefixes import extra_prefix
from cocktail.checkpoint.ties import OUTPUT_EMBEDDINGS, is_tied
from cocktail.checkpoint.weight_files import ADAPTER_FILES
from cocktail.checkpoint.whole import read_tensor_file
from cocktail.errors import CheckpointError, listed
from cocktail.tensors.dtypes import FLOATING
from cocktail.tensors.info import TensorInfo
from cocktail.tensors.lowrank import LowRank

_PREFIX = "base_model.model."
_MATRIX = re.compile(
    r"(?P<module>.+)\.lora_(?P<kind>A|B|embedding_A|embedding_B|magnitude_vector)"
    r"(\.(?!weight$|bias$)[^.]+)?(\.(?P<leaf>weight|bias))?"
)
# transformers' Conv1D layers store (in, out); PEFT goes by the layer, whatever the config says.
_CONV1D_MODELS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
_CONV1D_LAYERS = ("c_attn", "c_fc", "c_proj", "q_attn")
_WRAPPERS = re.compile(r"\.(base_layer|modules_to_save)(?=\.)")


@dataclass
class StoredAdapter:
    """The tensors of an adapter's file, by their names in the model that it was trained in.

    Attributes:
        matrices: for each module, its tensors by kind: ``A``, ``B``, ``B.bias``, ``embedding_A``,
            ...
        whole: tensors that replace the base's or are added to them.
    """

    matrices: dict[str, dict[str, TensorInfo]] = field(default_factory=dict)
    whole: dict[str, TensorInfo] = field(default_factory=dict)


@dataclass(frozen=True)
class JoinedTensors:
    """The base's tensors as the adapter leaves them.

    Attributes:
        tensors: by name; with the class's prefix if the adapter brings tensors of its own.
        added: names of the tensors that the base lacks.
        prefix: the prefix that was put before the base's names.
    """

    tensors: Mapping[str, TensorInfo]
    added: tuple[str, ...]
    prefix: str


def read_stored(folder: Path) -> StoredAdapter:
    """Read the headers of an adapter's file.

    Raises:
        CheckpointError: there is none, or it is damaged, empty, or holds tensors of another method.
    """
    path = next((folder / name for name in ADAPTER_FILES if (folder / name).is_file()), None)
    if path is None:
        raise CheckpointError(
            f"{folder}: has none of {', '.join(ADAPTER_FILES)} - an adapter holds one - save it "
            "with save_pretrained()"
        )
    tensors, aliases = read_tensor_file(path)
    tensors |= {alias: replace(tensors[name], name=alias) for alias, name in aliases.items()}
    result, unknown = StoredAdapter(), []
    # Where a tensor is stored under both its plain name and a wrapper's, the plain one counts.
    for key in sorted(tensors, key=lambda key: (key.count("."), key)):
        name = key.removeprefix(_PREFIX)
        match = _MATRIX.fullmatch(name)
        if match is not None:
            kind = match["kind"] + (".bias" if match["leaf"] == "bias" else "")
            result.matrices.setdefault(match["module"], {})[kind] = tensors[key]
        elif ".lora_" in name:
            unknown.append(name)
        elif ".original_module." not in name:
            result.whole.setdefault(_WRAPPERS.sub("", name), tensors[key])
    if unknown:
        raise CheckpointError(
            f"{path}: holds {listed(unknown)} - only LoRA's A and B and DoRA's magnitudes are "
            "known - merge the adapter with merge_and_unload(), and save that"
        )
    empty = [name for name, info in tensors.items() if info.numel == 0]
    if empty:
        raise CheckpointError(
            f"{path}: {len(empty)} of {len(tensors)} tensors are empty ({listed(empty, 3)}) - "
            "training under ZeRO-3 saves these where weights are not gathered - gather them, and "
            "save the adapter again"
        )
    if not tensors:
        raise CheckpointError(f"{path}: holds no tensor - train the adapter and save it again")
    return result


def join_tensors(
    checkpoint: Checkpoint, stored: StoredAdapter, lora: LoraConfig, adapter: str
) -> JoinedTensors:
    """Give a base's tensors the changes of an adapter.

    Args:
        checkpoint: the base.
        adapter: what messages call the adapter.

    Raises:
        CheckpointError: naming every tensor that the base lacks, or that does not fit it.
    """
    base, name = checkpoint.parts[MAIN].tensors, checkpoint.reference
    wanted = [f"{module}.weight" for module in stored.matrices] + list(stored.whole)
    prefix = extra_prefix(wanted, base)
    to_base = _renaming(base, wanted, prefix)
    if not all(to_base(key) in base or lora.saves(key) for key in wanted):
        to_base = _by_class(base, to_base, checkpoint.config)
    whole = {to_base(key): info for key, info in stored.whole.items()}
    tensors = {**base, **{key: info for key, info in whole.items() if key in base}}
    matcher = _Matcher(tensors, lora, checkpoint.config.get("model_type") in _CONV1D_MODELS)
    experts = changed_parameters(checkpoint, tensors, stored.matrices, lora, adapter)
    for module, kinds in stored.matrices.items():
        if module in experts.modules:
            continue
        matcher.match(module, to_base(f"{module}.weight").removesuffix(".weight"), kinds)
    added = [key for key in stored.whole if to_base(key) not in base]
    lacking = matcher.lacking + [key for key in added if not lora.saves(key)]
    lacking = list(dict.fromkeys(lacking))
    ties = is_tied(checkpoint.config) is not False
    if lacking and ties and all(key.endswith(OUTPUT_EMBEDDINGS) for key in lacking):
        raise CheckpointError(
            f"{adapter}: changes {listed(lacking)}, which {name} ties to its input embedding - "
            "changing only one of the two would untie them - merge it with merge_and_unload(), and "
            "save that"
        )
    if lacking:
        raise CheckpointError(
            f"{adapter}: changes {listed(lacking)}, which {name} lacks - an adapter is added to "
            f"the model it was trained on - name that one: BASE+{adapter}"
        )
    misfits = [*experts.misfits, *matcher.misfits] + [
        f"{key} {list(info.shape)} for {list(base[key].shape)}"
        for key, info in whole.items()
        if key in base and info.shape != base[key].shape
    ]
    if misfits:
        raise CheckpointError(
            f"{adapter}: does not fit {name} ({listed(misfits, 3)}) - an adapter is added to the "
            f"model it was trained on - name that one: BASE+{adapter}"
        )
    tensors |= matcher.changed | experts.changed
    if added:
        tensors = {prefix + key: info for key, info in tensors.items()}
        tensors |= {key: stored.whole[key] for key in added}
    return JoinedTensors(tensors, tuple(added), prefix if added else "")


def _renaming(
    base: Mapping[str, TensorInfo], wanted: list[str], prefix: str
) -> Callable[[str], str]:
    """Map the adapter's names, which may be another class's, to the base's."""
    missing = extra_prefix(list(base), wanted)

    def rename(name: str) -> str:
        if prefix:
            return name.removeprefix(prefix)
        return missing + name if missing + name in base else name

    return rename


def _by_class(
    base: Mapping[str, TensorInfo], otherwise: Callable[[str], str], config: Mapping[str, Any]
) -> Callable[[str], str]:
    """Find a module's name in the base's files.

    transformers may rename what it loads, and an adapter uses the names of the loaded model, in
    today's version or an older one.
    """
    asked = architecture_of(config)
    if asked is None:
        return otherwise
    stored = {asked.common(name): name for name in base}

    def rename(name: str) -> str:
        plain = otherwise(name)
        return plain if plain in base else stored.get(asked.common(name), plain)

    return rename


class _Matcher:
    """Finds the tensor that each pair of matrices changes, and collects what is wrong."""

    def __init__(
        self, tensors: Mapping[str, TensorInfo], lora: LoraConfig, has_conv1d: bool
    ) -> None:
        self.tensors = tensors
        self.lora = lora
        self.has_conv1d = has_conv1d
        self.changed: dict[str, TensorInfo] = {}
        self.lacking: list[str] = []
        self.misfits: list[str] = []

    def match(self, module: str, stem: str, kinds: Mapping[str, TensorInfo]) -> None:
        """Match one module.

        Args:
            module: its name in the adapter, which rank and alpha patterns refer to.
            stem: its name in the base.
        """
        weight, bias = self.tensors.get(f"{stem}.weight"), self.tensors.get(f"{stem}.bias")
        if weight is None:
            self.lacking.append(f"{module}.weight")
            return
        if "B.bias" in kinds and bias is None:
            self.lacking.append(f"{module}.bias")
            return
        problem = "; ".join(self._problems(module, weight, bias, kinds))
        if problem:
            self.misfits.append(f"{module}: {problem}")
            return
        a, b = _factors(kinds)
        scale = self.lora.scale_of(module)
        delta = LowRank(
            a, b, scale, self._is_transposed(module, weight, kinds), kinds.get("magnitude_vector")
        )
        self.changed[f"{stem}.weight"] = replace(weight, delta=delta)
        if bias is not None and "B.bias" in kinds:
            self.changed[f"{stem}.bias"] = replace(
                bias, delta=LowRank(None, kinds["B.bias"], scale)
            )

    def _problems(
        self,
        module: str,
        weight: TensorInfo,
        bias: TensorInfo | None,
        kinds: Mapping[str, TensorInfo],
    ) -> Iterator[str]:
        pair = {"A", "B"} if "A" in kinds else {"embedding_A", "embedding_B"}
        expected = pair | ({"magnitude_vector"} if self.lora.is_dora else set())
        if set(kinds) - {"B.bias"} != expected:
            yield f"holds {', '.join(sorted(kinds))} where {', '.join(sorted(expected))} belong"
            return
        a, b = _factors(kinds)
        rank = self.lora.rank_of(module)
        if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != rank or b.shape[1] != rank:
            yield f"A {list(a.shape)} and B {list(b.shape)} for rank {rank}"
            return
        if weight.shape not in ((b.shape[0], a.shape[1]), (a.shape[1], b.shape[0])) or (
            "embedding_A" in kinds and weight.shape != (a.shape[1], b.shape[0])
        ):
            yield f"A {list(a.shape)} and B {list(b.shape)} for {list(weight.shape)}"
        for vector, shape in (
            (kinds.get("magnitude_vector"), (b.shape[0],)),
            (kinds.get("B.bias"), bias.shape if bias is not None else ()),
        ):
            if vector is not None and vector.shape != shape:
                yield f"{list(vector.shape)} for {list(shape)}"
        if any(info.dtype not in FLOATING for info in (weight, *kinds.values())):
            yield "not floating-point"

    def _is_transposed(
        self, module: str, weight: TensorInfo, kinds: Mapping[str, TensorInfo]
    ) -> bool:
        """Whether the weight is (in, out): embeddings, and layers such as GPT-2's Conv1D."""
        if "embedding_A" in kinds:
            return True
        a, b = _factors(kinds)
        if b.shape[0] == a.shape[1]:  # the shapes do not say
            if self.has_conv1d:
                return module.rpartition(".")[2] in _CONV1D_LAYERS
            return self.lora.fan_in_fan_out
        return weight.shape == (a.shape[1], b.shape[0])


def _factors(kinds: Mapping[str, TensorInfo]) -> tuple[TensorInfo, TensorInfo]:
    prefix = "" if "A" in kinds else "embedding_"
    return kinds[f"{prefix}A"], kinds[f"{prefix}B"]
