"""Compare the ingredients' configs: weights of different functions have no meaningful average."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cocktail.checkpoint.model import Checkpoint
from cocktail.checkpoint.pooling import pooling_mode

# Differences in these do not change what a weight means: bookkeeping, training-time losses and
# regularisation, output switches, generation and tokenizer settings (tokenizers are compared
# separately).
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
# Read only in training: dropout, input masking, losses, initialisation.
_OF_TRAINING = re.compile(
    r"dropout|drop_|_pdrop$|layerdrop|^mask_(time|feature)_|spec_augment|label_smoothing|jitter|"
    r"(^|_)loss(_|$)|^init_|^initializer_|_init$|_init_std$|version$"
)
# Limits on lengths; tensors of positions show theirs in their shapes.
_OF_LENGTH = frozenset(
    {"max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length", "model_max_length",
     "seq_length", "max_seq_len", "max_target_positions", "max_source_positions"}
)  # fmt: skip
# Read only where the switch beside them is on.
_SWITCHED = {"sliding_window": "use_sliding_window", "max_window_layers": "use_sliding_window"}
_DEFAULT_ROPE = {"rope_type": "default"}
_WHERE_ABSENT: Mapping[str, Any] = {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "rope": _DEFAULT_ROPE,
}


@dataclass(frozen=True)
class ConfigDifferences:
    """How the configs of ingredients differ.

    Attributes:
        problems: differences that change what the weights compute, one line each.
        notes: those that do not, or that were accepted; the mix takes the donor's value.
    """

    problems: tuple[str, ...]
    notes: tuple[str, ...]


def compare_configs(
    names: Sequence[str],
    configs: Sequence[Mapping[str, Any]],
    accepted: Sequence[str] = (),
    donor: int = 0,
) -> ConfigDifferences:
    """Compare the configs with the first.

    Args:
        names: what the messages call the ingredients.
        configs: their ``config.json``, in the same order.
        accepted: keys that may differ; nested ones as ``text_config.hidden_act``.
        donor: index of the ingredient whose config the mix takes.
    """
    first = _comparable(configs[0])
    problems, notes = [], []
    for name, config in zip(names[1:], configs[1:], strict=True):
        for key, ours, theirs in _differences(first, _comparable(config)):
            found = f"{key} is {ours!r} in {names[0]} and {theirs!r} in {name}"
            if key in accepted or key.rpartition(".")[2] in accepted:
                notes.append(f"{found}, which was accepted; the mix takes that of {names[donor]}")
            elif _is_note(key, configs[0], config):
                notes.append(f"{found}; the mix takes that of {names[donor]}")
            else:
                problems.append(
                    f"{found} - ingredients must have the same architecture - mix checkpoints that "
                    "were fine-tuned from one base, or take the value of "
                    f"{names[donor]} with --accept-config {key} (accept_config)"
                )
    return ConfigDifferences(tuple(problems), tuple(notes))


def _is_note(path: str, *configs: Mapping[str, Any]) -> bool:
    """Whether a difference leaves the meaning of the weights unchanged."""
    *above, key = path.split(".")
    if key in _OF_LENGTH:
        return True
    switch = _SWITCHED.get(key)
    for part in above:
        configs = tuple(c.get(part) or {} for c in configs)
    return switch is not None and all(config.get(switch) is False for config in configs)


def _differences(
    first: Mapping[str, Any], other: Mapping[str, Any], path: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """The keys, with the path to each, that both have with different values."""
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
    """Drop what does not matter, and spell equal settings the same way."""
    result = {
        key: _comparable(value) if isinstance(value, Mapping) else value
        for key, value in config.items()
        if key not in _HARMLESS and not _OF_TRAINING.search(key)
    }
    _spell_rope(result)
    labels = _labels(config)
    if labels is not None:
        result["labels"] = labels
    return result


def _spell_rope(config: dict[str, Any]) -> None:
    """Give the rotary settings one form; transformers 5 moved them into one entry, or one per layer
    type."""
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
    """The names of the classes in the order of the head's rows; ``None`` if they have none."""
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
            f"{ingredients[0].reference} pools by {modes[0]}, but pooling {pooling!r} was asked "
            "for - pooling can be added only if the first ingredient has none - leave it out"
        )
    for checkpoint, mode in zip(ingredients, modes, strict=True):
        if mode is not None and modes[0] is not None and mode != modes[0]:
            problems.append(
                f"{checkpoint.reference} pools by {mode}, but {ingredients[0].reference} by "
                f"{modes[0]} - embeddings that are pooled differently cannot be averaged - mix "
                "models that pool alike"
            )
    return problems
