"""Load a trained reranker of any kind: a cross-encoder with a head, or a language model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

from reranker_ft.errors import ModelError
from reranker_ft.model.described import (
    described_readout,
    is_language_model,
    locate,
    read_file,
    read_modules,
)
from reranker_ft.model.load import (
    adapter_base,
    is_adapter,
    load_cross_encoder,
    model_errors,
    no_load_report,
    tokenizer_home,
)
from reranker_ft.model.modules import make_stack
from reranker_ft.model.prompts import FAMILIES, prompt_named
from reranker_ft.model.readout import CONFIG_KEY, Readout, attach_readout
from reranker_ft.model.tokenizer import add_padding, require_vocabulary


def load_reranker(
    name_or_path: str | Path,
    *,
    trust_remote_code: bool = False,
    cache_dir: str | None = None,
    sep_token: str | None = None,
    prompt_template: str | None = None,
    yes_token: str | None = None,
    no_token: str | None = None,
    adapter: str | Path | None = None,
) -> tuple[nn.Module, Any]:
    """Load a model that scores pairs, and its tokenizer.

    Args:
        name_or_path: A folder, a PEFT adapter's folder, or a Hub id.
        sep_token: As for ``load_cross_encoder``; a language model has a prompt instead.
        prompt_template: Of a language model, as for ``prompt_named``; ``None`` for what its folder
            says, or the prompt of the family whose name it has.
        yes_token, no_token: The answers, with ``prompt_template``.
        adapter: A PEFT adapter's folder, which is merged into the model.

    Returns:
        The model in evaluation mode, on the CPU, in the dtype of its checkpoint; the tokenizer.

    Raises:
        ArgumentError: ``prompt_template`` is not a prompt.
        ModelError: As for ``load_cross_encoder``; or a language model without a prompt.
    """
    name = str(name_or_path)
    options = {"trust_remote_code": trust_remote_code, "cache_dir": cache_dir}
    with model_errors(name, cache_dir):
        config = AutoConfig.from_pretrained(_config_home(name), **options)
    if not is_language_model(config) or _has_own_head(name):
        if prompt_template is not None:
            raise ModelError(
                f"{name} is not a language model ({_class_name(config)}) - prompt_template is what "
                "those read - leave it out"
            )
        stack = load_stack(name, config, options)
        if stack is not None:
            return stack
        model, tokenizer = load_cross_encoder(
            name, trust_remote_code=trust_remote_code, cache_dir=cache_dir, sep_token=sep_token
        )
        attach_recorded(model)
        return model, tokenizer
    with model_errors(name, cache_dir):
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_home(name), **options)
    readout = find_readout(
        name, config, tokenizer, prompt_template, yes_token, no_token, cache_dir=cache_dir
    )
    model = load_language_model(name, options, adapters=[] if adapter is None else [adapter])
    prepare_language_model(name, model, tokenizer, readout)
    return model.eval(), tokenizer


def load_stack(
    name: str, config: Any, options: dict[str, Any], **loading: Any
) -> tuple[Any, Any] | None:
    """Load a transformer with Pooling and Dense; ``None`` if the model is not stored so.

    Args:
        options: Of from_pretrained, for model and tokenizer.
        loading: Further ones, for the model.

    Returns:
        The model in evaluation mode; its tokenizer.

    Raises:
        ModelError: It does not load, or its modules give no score.
    """
    hub = {key: value for key, value in options.items() if key != "trust_remote_code"}
    modules = read_modules(name, **hub)
    heads = str((config.architectures or [""])[0])
    if modules is None or "ForSequenceClassification" in heads:
        return None
    with model_errors(name, options["cache_dir"]), no_load_report():
        body = AutoModel.from_pretrained(name, **options, **loading)
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
    model = make_stack(
        name, body, modules, partial(read_file, name, **hub), partial(locate, name, **hub)
    )
    require_vocabulary(name, model, tokenizer)
    add_padding(name, tokenizer)
    return model.eval(), tokenizer


def attach_recorded(model: Any) -> None:
    """Let a model with a head of one logit read the prompt that its config records, if any."""
    record = getattr(model.config, CONFIG_KEY, None)
    if isinstance(record, Mapping):
        attach_readout(model, Readout.from_dict(record))


def find_readout(
    name: str,
    config: Any,
    tokenizer: Any,
    prompt_template: str | None = None,
    yes_token: str | None = None,
    no_token: str | None = None,
    **hub: Any,
) -> Readout:
    """Return how a language model scores: as asked for, or else as its folder says.

    Raises:
        ArgumentError: ``prompt_template`` is not a prompt.
        ModelError: Nothing says how.
    """
    if prompt_template is not None:
        return Readout.of(prompt_named(prompt_template, yes=yes_token, no=no_token), tokenizer)
    found = described_readout(name, config, tokenizer, **hub)
    if found is None:
        raise ModelError(
            f"{name} is a language model ({_class_name(config)}) and nothing with it says how it "
            "reranks - a language model scores a pair by its answer to a prompt - name the prompt "
            f"(prompt_template: {', '.join(FAMILIES)}, or a text with {{query}} and {{passage}}), "
            "or name a trained reranker"
        )
    return found


def prepare_language_model(name: str, model: Any, tokenizer: Any, readout: Readout) -> None:
    """Attach the readout, and make sure that the two fit: vocabulary, padding.

    Raises:
        ModelError: The tokenizer makes tokens that the model has no embedding for.
    """
    require_vocabulary(name, model, tokenizer)
    add_padding(name, tokenizer)
    attach_readout(model, readout)


def load_language_model(
    name: str, options: dict[str, Any], *, adapters: Sequence[str | Path] = ()
) -> Any:
    """Load a causal language model; adapters on it are merged.

    Args:
        options: Of from_pretrained.
        adapters: Further adapters' folders, merged in this order.

    Raises:
        ModelError: It does not load, or lacks parameters.
    """
    base = adapter_base(name) if is_adapter(name) else name
    with model_errors(base, options.get("cache_dir")), no_load_report():
        model, report = AutoModelForCausalLM.from_pretrained(
            base, output_loading_info=True, **options
        )
    missing = sorted(set(report["missing_keys"]) & {key for key, _ in model.named_parameters()})
    if missing:
        raise ModelError(
            f"{base} lacks {len(missing)} parameters ({', '.join(missing[:3])}) - scores of random "
            "weights mean nothing - name a whole model"
        )
    for folder in ([name] if is_adapter(name) else []) + list(map(str, adapters)):
        from peft import PeftModel  # noqa: PLC0415 - optional

        with model_errors(folder):
            model = PeftModel.from_pretrained(model, folder).merge_and_unload()
    return model


def _config_home(name: str) -> str:
    """Return where the config is: with an adapter that brings one, else with its base."""
    if is_adapter(name) and not (Path(name) / "config.json").is_file():
        return adapter_base(name)
    return name


def _has_own_head(name: str) -> bool:
    """Whether this is an adapter that makes a classifier of a language model."""
    if not is_adapter(name):
        return False
    from peft import PeftConfig  # noqa: PLC0415 - optional

    with model_errors(name):
        return str(PeftConfig.from_pretrained(name).task_type).endswith("SEQ_CLS")


def _class_name(config: Any) -> str:
    return str((getattr(config, "architectures", None) or [type(config).__name__])[0])
