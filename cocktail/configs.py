"""Compare the configs of the ingredients: weights of different functions have no average."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# Differences in these change nothing about what a weight means: bookkeeping, training-time
# regularisation, output switches, generation and tokenizer settings (tokenizers are compared
# by themselves).
_HARMLESS = frozenset(
    {
        "_attn_implementation", "_attn_implementation_autoset", "_commit_hash", "_name_or_path",
        "architectures", "auto_map", "bos_token_id", "cls_token_id", "decoder_start_token_id",
        "dtype", "eos_token_id", "finetuning_task", "forced_bos_token_id", "forced_eos_token_id",
        "gradient_checkpointing", "id2label", "initializer_factor", "initializer_range",
        "label2id", "mask_token_id", "max_length", "min_length", "num_beams", "num_labels",
        "output_attentions", "output_hidden_states", "pad_token_id", "prefix",
        "pretraining_tp", "problem_type", "return_dict", "return_dict_in_generate",
        "sbert_ce_default_activation_function", "sentence_transformers", "sep_token_id",
        "task_specific_params", "tie_word_embeddings", "tokenizer_class", "torch_dtype",
        "torchscript", "transformers_version", "transformers.js_config", "unk_token_id",
        "use_cache",
    }
)  # fmt: skip
_WHERE_ABSENT: Mapping[str, Any] = {"position_embedding_type": "absolute", "is_decoder": False}


def config_problems(names: Sequence[str], configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say in what the configs differ that decides what the weights compute.

    Args:
        names: what the messages call the ingredients.
        configs: their ``config.json``, in the same order.

    Returns:
        One line for each key and each ingredient that differs from the first.
    """
    first = _comparable(configs[0])
    problems = []
    for name, config in zip(names[1:], configs[1:], strict=True):
        other = _comparable(config)
        for key in sorted(first.keys() | other.keys()):
            ours = first.get(key, _WHERE_ABSENT.get(key))
            theirs = other.get(key, _WHERE_ABSENT.get(key))
            if ours is None or theirs is None or ours == theirs:
                # Absent means a default, which depends on the library's version.
                continue
            problems.append(
                f"{key} is {ours!r} in {names[0]} and {theirs!r} in {name} - ingredients must have "
                "the same architecture - mix checkpoints that were fine-tuned from one base"
            )
    return problems


def is_tied(config: Mapping[str, Any]) -> bool | None:
    """Whether the output embedding is the input embedding; ``None`` if the config is silent."""
    value = config.get("tie_word_embeddings")
    return bool(value) if value is not None else None


def is_quantised(config: Mapping[str, Any]) -> bool:
    return bool(config.get("quantization_config"))


def _comparable(config: Mapping[str, Any]) -> dict[str, Any]:
    """Drop what does not matter and spell the same fact the same way."""
    result = {
        key: value
        for key, value in config.items()
        if key not in _HARMLESS and "dropout" not in key and "drop_" not in key
    }
    # transformers 5 moved the rotary settings into one entry.
    rope = dict(result.pop("rope_parameters", None) or {})
    scaling = dict(result.pop("rope_scaling", None) or {})
    merged = {**scaling, **rope}
    if "type" in merged:
        merged.setdefault("rope_type", merged.pop("type"))
    if "rope_theta" in merged:
        result.setdefault("rope_theta", merged.pop("rope_theta"))
    if merged.get("rope_type", "default") != "default":
        result["rope"] = merged
    labels = _labels(config)
    if labels is not None:
        result["labels"] = labels
    return result


def _labels(config: Mapping[str, Any]) -> list[str] | None:
    """The names of the classes in the order of the head's rows; ``None`` if only numbered."""
    mapping = config.get("id2label")
    if not isinstance(mapping, Mapping):
        return None
    try:
        labels = [str(mapping[key]) for key in sorted(mapping, key=int)]
    except ValueError:
        return sorted(f"{key}={value}" for key, value in mapping.items())
    return None if all(label == f"LABEL_{i}" for i, label in enumerate(labels)) else labels
