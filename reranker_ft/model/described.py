"""How a model folder says that a language model in it is a reranker."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from reranker_ft.errors import ModelError
from reranker_ft.model.prompts import Prompt, published_prompt
from reranker_ft.model.readout import CONFIG_KEY, Readout

CAUSAL = ("ForCausalLM", "LMHeadModel")
_SCORE = ".LogitScore"
# Characters of no script, which stand for the two texts while a chat template is rendered.
_QUERY, _PASSAGE = "\ue000", "\ue001"
_PAIR = Prompt("pair", (), "", (), "", (), yes="yes", no="no", start_token="usual")


def is_language_model(config: Any) -> bool:
    """Whether the first class that a config names has a language model's head."""
    names = getattr(config, "architectures", None) or [""]
    return str(names[0]).endswith(CAUSAL)


def is_described(name: str, config: Any, **hub: Any) -> bool:
    """Whether something with a language model says that it reranks, as ``described_readout`` asks.

    Raises:
        ModelError: A file that would say it is damaged.
    """
    modules = _json(name, "modules.json", hub) or ()
    return (
        isinstance(getattr(config, CONFIG_KEY, None), Mapping)
        or any(str(module.get("type", "")).endswith(_SCORE) for module in modules)
        or _family(name, config) is not None
    )


def _family(name: str, config: Any) -> Prompt | None:
    return published_prompt(Path(name).name, name, getattr(config, "_name_or_path", None))


def described_readout(name: str, config: Any, tokenizer: Any, **hub: Any) -> Readout | None:
    """Read how a language model scores pairs from what lies beside it.

    In this order: the record in ``config.json``, the modules of a sentence-transformers
    ``CrossEncoder``, the name under which a known family is published.

    Args:
        hub: ``cache_dir``, ``token`` and the like, for a model of the Hub.

    Returns:
        ``None`` if nothing says that the model reranks.

    Raises:
        ModelError: What says so is damaged, or its modules are not a transformer and LogitScore.
    """
    record = getattr(config, CONFIG_KEY, None)
    if isinstance(record, Mapping):
        return Readout.from_dict(record)
    modules = _json(name, "modules.json", hub)
    if modules is not None:
        found = _from_modules(name, modules, tokenizer, hub)
        if found is not None:
            return found
    prompt = _family(name, config)
    return None if prompt is None else Readout.of(prompt, tokenizer)


def _from_modules(name: str, modules: Any, tokenizer: Any, hub: dict[str, Any]) -> Readout | None:
    """Read the modules that sentence-transformers 6 stores a causal ``CrossEncoder`` as."""
    score = next((m for m in modules if str(m.get("type", "")).endswith(_SCORE)), None)
    if score is None:
        return None
    answers = _json(name, f"{score['path']}/config.json", hub) or {}
    yes, no = answers.get("true_token_id"), answers.get("false_token_id")
    if not isinstance(yes, int) or not (no is None or isinstance(no, int)):
        raise ModelError(
            f"{name} has LogitScore with the tokens {yes!r} and {no!r} - they are ids - save the "
            "model again"
        )
    settings = _json(name, "config_sentence_transformers.json", hub) or {}
    prompts = settings.get("prompts") or {}
    text = prompts.get(settings.get("default_prompt_name")) or ""
    transformer = _json(name, "sentence_bert_config.json", hub) or {}
    if not tokenizer.chat_template or not _takes_messages(transformer):
        return Readout(replace(_PAIR, query=text) if text else None, yes, no)
    return Readout(_rendered(name, tokenizer, transformer, text), yes, no)


def _takes_messages(transformer: Mapping[str, Any]) -> bool:
    modalities = transformer.get("modality_config")
    return modalities is None or "message" in modalities


def _rendered(name: str, tokenizer: Any, transformer: Mapping[str, Any], system: str) -> Prompt:
    """Return the prompt that the tokenizer's chat template writes around a query and a passage."""
    modality = (transformer.get("modality_config") or {}).get("message") or {}
    options = (transformer.get("processing_kwargs") or {}).get("chat_template") or {}
    structured = modality.get("format") == "structured"
    messages = [("query", _QUERY), ("document", _PASSAGE)]
    if system:
        messages.insert(0, ("system", system))
    chat = [
        {"role": role, "content": [{"type": "text", "text": text}] if structured else text}
        for role, text in messages
    ]
    skipped = ("restore_suffix", "truncation", "max_length", "padding")
    options = {key: value for key, value in options.items() if key not in skipped}
    text = str(tokenizer.apply_chat_template(chat, tokenize=False, **options))
    if (
        text.count(_QUERY) != 1
        or text.count(_PASSAGE) != 1
        or text.find(_PASSAGE) < text.find(_QUERY)
    ):
        raise ModelError(
            f"{name} has a chat template that does not write a query and then a document, each "
            "once - a reranker reads both - name the whole prompt (prompt_template)"
        )
    before, rest = text.split(_QUERY)
    between, after = rest.split(_PASSAGE)
    return Prompt(
        name="chat-template",
        before=(before,),
        query="",
        between=(between,),
        passage="",
        after=(after,),
        yes="yes",
        no="no",
        joint=True,
    )


def read_modules(name: str, **hub: Any) -> list[Any] | None:
    """Read the ``modules.json`` of a cross-encoder that sentence-transformers stores as modules.

    Returns:
        ``None`` for a model without modules, one of a transformer alone, and an embedding model,
        whose modules make no score.

    Raises:
        ModelError: A file is damaged.
    """
    modules = _json(name, "modules.json", hub)
    if not isinstance(modules, list) or len(modules) < 2:
        return None
    said = _json(name, "config_sentence_transformers.json", hub) or {}
    return modules if said.get("model_type") == "CrossEncoder" else None


def read_file(name: str, file: str, **hub: Any) -> Any:
    """Read a JSON file of a folder or of the Hub; ``None`` if there is none.

    Raises:
        ModelError: It is damaged.
    """
    return _json(name, file, hub)


def locate(name: str, file: str, **hub: Any) -> Path | None:
    """Find a file of a folder or of the Hub; ``None`` if there is none."""
    if Path(name).is_dir():
        path = Path(name) / file
        return path if path.is_file() else None
    found = cached_file(
        name,
        file,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        **hub,
    )
    return None if found is None else Path(found)


def _json(name: str, file: str, hub: dict[str, Any]) -> Any:
    """Read a JSON file of a folder or of the Hub; ``None`` if there is none."""
    path = locate(name, file, **hub)
    if path is None:
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"{path} is not JSON ({error}) - it says how the model scores - save the model again"
        ) from error
