"""Load the language model that training starts from: it stays one, and is read at its answer."""

from __future__ import annotations

import importlib.util
import inspect
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, BitsAndBytesConfig

from reranker_ft.errors import ArgumentError, one_line
from reranker_ft.model.described import described_readout, is_described, is_language_model
from reranker_ft.model.load import adapter_base, is_adapter, model_errors, tokenizer_home
from reranker_ft.model.prompts import BGE, prompt_named
from reranker_ft.model.readout import Readout
from reranker_ft.model.rerankers import load_language_model, prepare_language_model
from reranker_ft.train.config import ModelArguments

logger = logging.getLogger(__name__)

# Parameters above which adapters are trained unless all weights are asked for.
LORA_PARAMETERS = 1_000_000_000
# What a class does to its logits behind the output embedding.
_SCALES = ("logit_scale", "logits_scaling", "final_logit_softcapping")


def trains_language_model(args: ModelArguments) -> bool:
    """Whether a run trains a language model as one: if asked to, or if it is a reranker already.

    Raises:
        ModelError: The config does not load.
    """
    return args.decodes or is_language_reranker(args)


def is_language_reranker(args: ModelArguments) -> bool:
    """Whether the model that a run starts from is a language model that says how it reranks.

    Raises:
        ModelError: The config does not load.
    """
    name = args.model_name_or_path
    home = name
    if is_adapter(name) and not (Path(name) / "config.json").is_file():
        home = adapter_base(name)
    hub = {"cache_dir": args.cache_dir, "token": args.token}
    with model_errors(name, args.cache_dir):
        config = AutoConfig.from_pretrained(
            args.config_name or home, trust_remote_code=args.trust_remote_code, **hub
        )
    return is_language_model(config) and is_described(name, config, **hub)


def load_tokenizer(args: ModelArguments) -> Any:
    """Return the tokenizer that was asked for, else the model's own."""
    with model_errors(args.model_name_or_path, args.cache_dir):
        return AutoTokenizer.from_pretrained(
            args.tokenizer_name or tokenizer_home(args.model_name_or_path),
            use_fast=args.use_fast_tokenizer,
            **args.hub,
        )


def load_decoder_for_training(args: ModelArguments) -> tuple[Any, Any]:
    """Return the language model with its readout, in fp32, with adapters; its tokenizer.

    Sets ``args.use_lora`` where it was left open.

    Raises:
        ModelError: The model does not load, or is not a language model.
        ArgumentError: The prompt or the modules for adapters cannot be meant.
    """
    name, common = args.model_name_or_path, args.hub
    tokenizer = load_tokenizer(args)
    options = {"dtype": "float32", "attn_implementation": args.attention, **common}
    if args.qlora:
        options["quantization_config"] = _four_bits()
    for folder in args.raw_peft or ():
        if not is_adapter(folder):
            raise ArgumentError(
                f"raw_peft is {folder!r} - it names folders with PEFT adapters - check the path"
            )
    model = load_language_model(name, options, adapters=args.raw_peft or ())
    readout = _readout(args, model.config, tokenizer, common)
    if args.start_layer is not None:
        _check_layers(args, model)
        readout = replace(readout, start_layer=args.start_layer)
    prepare_language_model(name, model, tokenizer, readout)
    model.config.use_cache = False
    if args.qlora:
        model = _prepared_for_adapters(model)
        args.use_lora = True
    if args.use_lora is None:
        args.use_lora = model.num_parameters() > LORA_PARAMETERS or args.from_peft is not None
    return (_with_adapters(model, args) if args.use_lora else model), tokenizer


def _four_bits() -> Any:
    """Return how QLoRA (Dettmers et al., 2023) holds a model's weights."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ArgumentError(
            "qlora is set and bitsandbytes is not installed - it holds weights in 4 bits - "
            "pip install bitsandbytes, or leave the flag out"
        )
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype="bfloat16",
    )


def _prepared_for_adapters(model: Any) -> Any:
    from peft import prepare_model_for_kbit_training  # noqa: PLC0415 - optional

    return prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)


def _check_layers(args: ModelArguments, model: Any) -> None:
    """Refuse a layerwise training that the model's class cannot have."""
    first, layers = args.start_layer, model.config.num_hidden_layers
    if first is not None and first > layers:
        raise ArgumentError(
            f"start_layer is {first} and {args.model_name_or_path} has {layers} layers - layers "
            "from it on learn to score - use a smaller number"
        )
    if "cutoff_layers" in inspect.signature(model.forward).parameters:
        return
    scaled = [key for key in _SCALES if getattr(model.config, key, None) not in (None, 1, 1.0)]
    if args.head_multi or scaled:
        found = "head_multi is set" if args.head_multi else f"{scaled[0]} is in its config"
        raise ArgumentError(
            f"{found} and {args.model_name_or_path} is a {type(model).__name__} - its layers are "
            "read by its one output embedding - leave it out, or start from a model whose own code "
            "has a head for each layer"
        )


def _readout(args: ModelArguments, config: Any, tokenizer: Any, hub: dict[str, Any]) -> Readout:
    """Return how the model is to score: as asked for, as it scores by now, or as FlagEmbedding."""
    if args.prompt_template is not None:
        prompt = prompt_named(args.prompt_template, yes=args.yes_token, no=args.no_token)
        return Readout.of(prompt, tokenizer)
    found = described_readout(args.model_name_or_path, config, tokenizer, **hub)
    if found is not None:
        return found
    logger.warning(
        "%s says nothing of how it reranks: it is asked as bge-reranker-v2-gemma is "
        "(--prompt_template bge-llm).",
        args.model_name_or_path,
    )
    return Readout.of(BGE, tokenizer)


def _with_adapters(model: Any, args: ModelArguments) -> Any:
    """Return the model with LoRA adapters, new or those of ``from_peft``."""
    from peft import PeftModel  # noqa: PLC0415 - optional

    if args.from_peft is None:
        return new_adapters(
            model, args, task_type="CAUSAL_LM", modules_to_save=args.modules_to_save
        )
    with model_errors(args.from_peft):
        return PeftModel.from_pretrained(model, args.from_peft, is_trainable=True)


def new_adapters(model: Any, args: ModelArguments, **settings: Any) -> Any:
    """Return the model with new LoRA adapters (Hu et al., 2021).

    Args:
        settings: Of PEFT's ``LoraConfig``, beside those that flags give.

    Raises:
        ArgumentError: The model has no module for them.
    """
    from peft import LoraConfig, get_peft_model  # noqa: PLC0415 - optional

    config = LoraConfig(
        r=args.lora_rank,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        target_modules=args.target_modules or "all-linear",
        **settings,
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise ArgumentError(
            f"no adapters fit {args.target_modules or 'all linear layers'} of "
            f"{args.model_name_or_path}: {one_line(error)}"
        ) from error
