"""Read ``adapter_config.json``: how a PEFT adapter is added to its base, or why it cannot be."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cocktail.checkpoint.folder import local_folder, read_json
from cocktail.checkpoint.weight_files import ADAPTER_CONFIG
from cocktail.errors import CheckpointError, listed

# Settings that change nothing about what the stored matrices mean, or are read below.
_UNDERSTOOD = frozenset(
    {
        "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config",
        "ensure_weight_tying", "eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode",
        "init_lora_weights", "layers_pattern", "layers_to_transform", "loftq_config", "lora_alpha",
        "lora_bias", "lora_dropout", "lora_ga_config", "megatron_core", "modules_to_save",
        "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision",
        "runtime_config", "target_modules", "target_parameters", "task_type", "use_dora",
        "use_rslora",
    }
)  # fmt: skip
# These initialisations subtract a part of the base's weights; the others only choose A and B.
_CHANGES_BASE = ("pissa", "corda", "olora", "loftq", "lora_ga", "mica")


@dataclass(frozen=True)
class LoraConfig:
    """The settings of an adapter's config that its tensors depend on.

    Attributes:
        base: folder or Hub id of the model that it was trained on, with its revision.
        modules_to_save: modules that were trained whole and are stored whole.
        target_parameters: ends of the names of parameters that are changed without a layer of their
            own, such as those of experts.
        ties_embeddings: where the base ties its embeddings, the trained ones are tied too.
        model_class: the class that it was trained in, where the config names one.
    """

    base: str | None
    rank: int
    alpha: float
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    is_rank_stabilised: bool
    is_dora: bool
    fan_in_fan_out: bool
    modules_to_save: tuple[str, ...]
    target_parameters: tuple[str, ...]
    ties_embeddings: bool
    task: str | None
    model_class: str | None

    def rank_of(self, module: str) -> int:
        return self.rank_pattern.get(_first_match(self.rank_pattern, module), self.rank)

    def scale_of(self, module: str) -> float:
        """alpha / r, or alpha / sqrt(r), https://arxiv.org/abs/2312.03732."""
        alpha = self.alpha_pattern.get(_first_match(self.alpha_pattern, module), self.alpha)
        rank = self.rank_of(module)
        return alpha / math.sqrt(rank) if self.is_rank_stabilised else alpha / rank

    def targets(self, parameter: str) -> bool:
        """Whether a parameter is changed by itself, not as the weight of a targeted layer."""
        return f".{parameter}".endswith(tuple(f".{name}" for name in self.target_parameters))

    def saves(self, tensor: str) -> bool:
        """Whether a tensor belongs to one of the modules that are stored whole."""
        return any(re.search(rf"(^|\.){re.escape(m)}\.", tensor) for m in self.modules_to_save)


def read_adapter_config(folder: Path) -> LoraConfig:
    """Read an adapter's config.

    Raises:
        CheckpointError: it is not a LoRA, uses a variant that is unknown or not a fixed change of
            the weights, or is damaged.
    """
    path = folder / ADAPTER_CONFIG
    values = read_json(path)
    kind = values.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(
            f"{folder}: is an adapter of type {kind!r} - only LORA can be added to its base - "
            "merge it with merge_and_unload() where PEFT can, and save that"
        )
    active = sorted(key for key, value in values.items() if value and key not in _UNDERSTOOD)
    start = str(values.get("init_lora_weights")).lower()
    if start.startswith(_CHANGES_BASE):
        active.append(f"init_lora_weights={start}")
    if active:
        raise CheckpointError(
            f"{folder}: uses {listed(active)} - an adapter must be a low-rank change of the "
            "base's own weights - merge it with merge_and_unload(), and save that"
        )
    try:
        return _parse(values)
    except (TypeError, ValueError, OverflowError, AttributeError, re.error) as error:
        raise CheckpointError(f"{path}: cannot be understood ({error}) - repair the file") from None


def _parse(values: Mapping[str, Any]) -> LoraConfig:
    base, revision = values.get("base_model_name_or_path"), values.get("revision")
    if base and revision and local_folder(str(base)) is None:
        base = f"{base}@{revision}"
    ranks = {str(key): int(rank) for key, rank in (values.get("rank_pattern") or {}).items()}
    alphas = {str(key): float(alpha) for key, alpha in (values.get("alpha_pattern") or {}).items()}
    for pattern in (*ranks, *alphas):
        re.compile(pattern)
    rank, alpha = int(values.get("r", 8)), float(values.get("lora_alpha", 8))
    if min([rank, *ranks.values()]) < 1:
        raise ValueError(f"a rank is {min([rank, *ranks.values()])}, less than 1")
    if not all(map(math.isfinite, (alpha, *alphas.values()))):
        raise ValueError("an alpha is not finite")
    return LoraConfig(
        base=str(base) if base else None,
        rank=rank,
        alpha=alpha,
        rank_pattern=ranks,
        alpha_pattern=alphas,
        is_rank_stabilised=bool(values.get("use_rslora")),
        is_dora=bool(values.get("use_dora")),
        fan_in_fan_out=bool(values.get("fan_in_fan_out")),
        modules_to_save=tuple(map(str, values.get("modules_to_save") or ())),
        target_parameters=tuple(map(str, values.get("target_parameters") or ())),
        ties_embeddings=bool(values.get("ensure_weight_tying")),
        task=values.get("task_type"),
        model_class=(values.get("auto_mapping") or {}).get("base_model_class"),
    )


def _first_match(patterns: Mapping[str, Any], module: str) -> str:
    """The first pattern that fits the end of a module's name, as PEFT chooses."""
    return next((p for p in patterns if re.match(rf"(.*\.)?({p})$", module)), "")
