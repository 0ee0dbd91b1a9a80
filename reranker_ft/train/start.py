"""Load the model that training starts from."""

from __future__ import annotations

import logging
from typing import Any

from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
)

from reranker_ft.errors import ArgumentError, ModelError
from reranker_ft.model.load import (
    is_adapter,
    load_adapter,
    model_errors,
    no_load_report,
)
from reranker_ft.model.rerankers import attach_recorded, load_stack
from reranker_ft.model.tokenizer import fit_tokenizer, separate_pairs
from reranker_ft.train.config import ModelArguments
from reranker_ft.train.decoder import (
    load_decoder_for_training,
    load_tokenizer,
    new_adapters,
    trains_language_model,
)

logger = logging.getLogger(__name__)

# What sentence_transformers.CrossEncoder applies to the logit. Without this entry it would be a
# sigmoid, and its scores would differ from those of transformers and FlagReranker.
RAW_SCORES = "torch.nn.modules.linear.Identity"


def load_for_training(args: ModelArguments, sep_token: str | None = None) -> tuple[Any, Any]:
    """Return the model with a one-logit head, in fp32, with adapters if asked for; its tokenizer.

    Args:
        sep_token: Goes between query and passage if the tokenizer puts nothing there; ``None`` is a
            line break for a model that gets a fresh head.

    Raises:
        ModelError: The model does not load, its head gives several scores per pair, or its
            tokenizer takes no separator.
    """
    if trains_language_model(args):
        return load_decoder_for_training(args)
    name, common = args.model_name_or_path, args.hub
    stack = None if is_adapter(name) else _stack_for_training(args, common)
    if stack is not None:
        return stack
    tokenizer = load_tokenizer(args)
    missing: set[str] = set()
    if is_adapter(name):
        model = _adapter_for_training(args, common)
    else:
        model, missing = _whole_for_training(args, common)
    fit_tokenizer(name, model, tokenizer)
    attach_recorded(model)
    tokenizer = separate_pairs(name, tokenizer, sep_token, fresh=bool(missing))
    if args.use_lora and not is_adapter(name):
        model = _with_adapters(model, args, missing)
    return model, tokenizer


def _stack_for_training(args: ModelArguments, common: dict[str, Any]) -> tuple[Any, Any] | None:
    """Load a cross-encoder of modules; ``None`` if the model is not stored so."""
    name = args.model_name_or_path
    with model_errors(name, args.cache_dir):
        config = AutoConfig.from_pretrained(args.config_name or name, **common)
    stack = load_stack(name, config, common, dtype="float32", attn_implementation=args.attention)
    if stack is not None and args.use_lora:
        raise ArgumentError(
            f"use_lora is set and {name} is a stack of modules - adapters are put into a model of "
            "transformers - leave it out, or convert the stack to sequence-classification"
        )
    return stack


def _adapter_for_training(args: ModelArguments, common: dict[str, Any]) -> Any:
    """Load an adapter to train on: as it is with LoRA, else merged into its base."""
    name = args.model_name_or_path
    options = {"dtype": "float32", "attn_implementation": args.attention, **common}
    with model_errors(name, args.cache_dir):
        model = load_adapter(name, options, trainable=bool(args.use_lora))
    if not args.use_lora:
        return model.merge_and_unload().requires_grad_(True)  # an adapter freezes its base
    logger.warning(
        "%s is an adapter: its training goes on with its own rank, alpha and modules.", name
    )
    return model


def _whole_for_training(args: ModelArguments, common: dict[str, Any]) -> tuple[Any, set[str]]:
    """Load a whole model; also return the parameters that start from random weights."""
    name = args.model_name_or_path
    with model_errors(name, args.cache_dir):
        config = AutoConfig.from_pretrained(args.config_name or name, **common)
    heads = [head for head in config.architectures or [] if "SequenceClassification" in head]
    if heads and config.num_labels != 1:
        raise ModelError(
            f"{name} is a classifier of {config.num_labels} labels - a reranker has one - start "
            "from a reranker or from the encoder"
        )
    config.num_labels = 1
    with model_errors(name, args.cache_dir), no_load_report():
        model, report = AutoModelForSequenceClassification.from_pretrained(
            name,
            config=config,
            dtype="float32",
            attn_implementation=args.attention,
            output_loading_info=True,
            **common,
        )
    missing = set(report["missing_keys"])
    _report_fresh_weights(name, model, missing)
    return model, missing


def _report_fresh_weights(name: str, model: Any, missing: set[str]) -> None:
    """Warn about a fresh head; refuse a body that the checkpoint does not hold."""
    parameters = {parameter for parameter, _ in model.named_parameters()}
    missing = missing & parameters
    body = sorted(
        key
        for key in missing
        if key.startswith(f"{model.base_model_prefix}.") and ".pooler." not in key
    )
    if body:
        raise ModelError(
            f"{name} lacks {len(body)} of {len(parameters)} parameters ({', '.join(body[:3])}, ...)"
            " - only the head may start from random weights - check that it is the right model"
        )
    if missing:
        model.config.sentence_transformers = {"activation_fn": RAW_SCORES}
        logger.warning(
            "%s has no reranking head: %s start from random weights, so scores mean nothing until "
            "it is trained.",
            name,
            ", ".join(sorted(missing)),
        )


def _with_adapters(model: Any, args: ModelArguments, fresh: set[str]) -> Any:
    """Return the model with new LoRA adapters; the head is trained and saved whole.

    Args:
        fresh: Parameters that the checkpoint does not hold. A pooler among them is trained whole
            too: what it started from could not be had again.
    """
    pooler = ["pooler"] if any(".pooler." in name for name in fresh) else []
    heads = [
        name
        for name, module in model.named_children()
        if name != model.base_model_prefix and any(True for _ in module.parameters())
    ]
    return new_adapters(
        model,
        args,
        task_type="SEQ_CLS",
        modules_to_save=heads + pooler,
        exclude_modules=r".*\bpooler\b.*" if pooler else None,
    )
