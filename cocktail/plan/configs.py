"""Compare the configs of the ingredients: weights of different functions have no average."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cocktail.checkpoint.model import Checkpoint
from cocktail.checkpoint.pooling import pooling_mode

# Differences in these change nothing about what a weight means: bookkeeping, training-time
# losses and regularisation, output switches, generation and tokenizer settings (tokenizers are
# compared by themselves).
_HARMLESS = frozenset(
    {
        "_attn_implementation", "_attn_implementation_autoset", "_commit_hash", "_name_or_path",
        "_num_labels", "architectures", "auto_map", "bad_words_ids", "begin_suppress_tokens",
        "bos_token_id", "cls_token_id", "decoder_start_token_id", "deterministic_flash_attn",
        "diversity_penalty", "do_sample", "dtype", "early_stopping", "eos_token_id",
        "finetuning_task", "forced_bos_token_id", "forced_eos_token_id", "gradient_checkpointing",
        "id2label", "initializer_factor", "initializer_range", "label2id", "length_penalty",
        "mask_token_id", "max_length", "min_length", "no_repeat_ngram_size", "num_beam_groups",
        "num_beams", "num_labels", "num_return_sequences", "output_attentions",
        "output_hidden_states", "output_router_logits", "output_scores", "pad_token_id", "prefix",
        "pretraining_tp", "problem_type", "reference_compile", "remove_invalid_values",
        "repad_logits_with_grad", "repetition_penalty", "return_dict", "return_dict_in_generate",
        "router_aux_loss_coef", "sbert_ce_default_activation_function", "sentence_transformers",
        "sep_token_id", "suppress_tokens", "task_specific_params", "temperature",
        "tie_word_embeddings", "tokenizer_class", "top_k", "top_p", "torch_dtype", "torchscript",
        "transformers.js_config", "typical_p", "unk_token_id", "unsloth_fixed", "use_cache",
    }
)  # fmt: skip
_DEFAULT_ROPE = {"rope_type": "default"}
_WHERE_ABSENT: Mapping[str, Any] = {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "rope": _DEFAULT_ROPE,
}


def config_problems(names: Sequence[str], configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say in what the configs differ that decides what the weights compute.

    Args:
        names: what the messages call the ingredients.
        configs: their ``config.json``, in the same order.

    Returns:
        One line for each key and each ingredient that differs from the first.
    """
    first = _comparable(configs[0])
    return [
        f"{key} is {ours!r} in {names[0]} and {theirs!r} in {name} - ingredients must have "
        "the same architecture - mix checkpoints that were fine-tuned from one base"
        for name, config in zip(names[1:], configs[1:], strict=True)
        for key, ours, theirs in _differences(first, _comparable(config))
    ]


def _differences(
    first: Mapping[str, Any], other: Mapping[str, Any], path: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """The keys, with those above them, that both have with different values."""
    for key in sorted(first.keys() | other.keys()):
        ours = first.get(key, _WHERE_ABSENT.get(key))
        theirs = other.get(key, _WHERE_ABSENT.get(key))
        if ours is None or theirs is None or ours == theirs:
            # Absent means a default, which depends on the library's version.
            continue
        if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
            yield from _differences(ours, theirs, f"{path}{key}.")
        else:
            yield path + key, ours, theirs


def _comparable(config: Mapping[str, Any]) -> dict[str, Any]:
    """Drop what does not matter and spell the same fact the same way."""
    result = {
        key: _comparable(value) if isinstance(value, Mapping) else value
        for key, value in config.items()
        if key not in _HARMLESS
        and "dropout" not in key
        and "drop_" not in key
        and not key.endswith("version")
    }
    _spell_rope(result)
    labels = _labels(config)
    if labels is not None:
        result["labels"] = labels
    return result


def _spell_rope(config: dict[str, Any]) -> None:
    """Give the rotary settings one form; transformers 5 moved them into one entry, or one for each
    type of layer."""
    entries = [config.pop(key, None) for key in ("rope_scaling", "rope_parameters")]
    rope = {k: v for entry in entries if isinstance(entry, Mapping) for k, v in entry.items()}
    if any(isinstance(value, Mapping) for value in rope.values()):
        config["rope"] = rope
        return
    for key in ("rope_theta", "partial_rotary_factor"):
        if key in rope:
            config.setdefault(key, rope.pop(key))
    if rope:
        kind = rope.pop("type", None)
        kind = rope.get("rope_type", kind)
        config["rope"] = rope | {"rope_type": "default" if kind in (None, "mrope") else kind}


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


def pooling_problems(ingredients: Sequence[Checkpoint], pooling: str | None) -> list[str]:
    """Say whose pooling contradicts the first ingredient's, or the one asked for."""
    modes = [pooling_mode(checkpoint) for checkpoint in ingredients]
    problems = []
    if pooling is not None and modes[0] not in (None, pooling):
        problems.append(
            f"{ingredients[0].reference} pools by {modes[0]}, pooling {pooling!r} was asked "
            "for - pooling is made only where the first ingredient has none - leave it out"
        )
    for checkpoint, mode in zip(ingredients, modes, strict=True):
        if mode is not None and modes[0] is not None and mode != modes[0]:
            problems.append(
                f"{checkpoint.reference} pools by {mode}, {ingredients[0].reference} by {modes[0]} "
                "- embeddings that are pooled differently have no average - mix models that pool "
                "alike"
            )
    return problems
