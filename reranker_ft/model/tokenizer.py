"""Fit a tokenizer to its cross-encoder: once, where the two meet.

The tokenizer itself is changed, so that every tool that loads the two together makes the same
tokens of a pair: transformers, sentence-transformers and FlagEmbedding, in training, scoring and
the search.
"""

from __future__ import annotations

import copy
import inspect
import logging
from typing import Any

from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from reranker_ft.errors import ModelError
from reranker_ft.model.pairs import PairTemplate, settings_kept

logger = logging.getLogger(__name__)

SPECIAL_TOKENS = (
    *("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"),
)
SEPARATOR = "\n"
"""What a fresh reranker gets between query and passage if its tokenizer puts nothing there."""


def fit_tokenizer(name: str, model: Any, tokenizer: Any) -> None:
    """Give the two a padding token in common, and take away what the model cannot use.

    A tokenizer without a padding token pads with its end token, with a note. Token types that the
    model lacks go, and so does a chat template: a cross-encoder reads pairs, and
    sentence-transformers would show it a chat of them.

    Args:
        name: Of the model, for messages.

    Raises:
        ModelError: The model lacks an embedding for a token that the tokenizer makes.
    """
    require_vocabulary(name, model, tokenizer)
    add_padding(name, tokenizer)
    _share_padding(model, tokenizer)
    _drop_unknown_types(model, tokenizer)
    tokenizer.chat_template = None


def add_padding(name: str, tokenizer: Any) -> None:
    """Let a tokenizer without a padding token pad with its end token, with a note."""
    if tokenizer.pad_token_id is not None:
        return
    substitute = tokenizer.eos_token or tokenizer.unk_token
    if substitute is not None:
        tokenizer.pad_token = substitute
        logger.warning("%s has no padding token: its tokenizer pads with %r.", name, substitute)


def require_vocabulary(name: str, model: Any, tokenizer: Any) -> None:
    """Make sure that the model has an embedding for each token that the tokenizer makes.

    Raises:
        ModelError: It has not.
    """
    try:
        rows = model.get_input_embeddings().num_embeddings
    except (AttributeError, NotImplementedError):
        return  # code of its own, which may know other embeddings than a table
    if len(tokenizer) <= rows:
        return
    tokens = max(tokenizer.get_vocab().values()) + 1
    if tokens > rows:
        raise ModelError(
            f"{name} has embeddings of {rows} tokens and its tokenizer makes {tokens} - every "
            "token needs one - use the tokenizer that the model was trained with"
        )


def _share_padding(model: Any, tokenizer: Any) -> None:
    """Tell the model which token is padding, where it has no idea or finds texts' ends by it.

    The head of a decoder reads the last token that is not padding: a config that names another
    token than the tokenizer pads with, or -1, makes it read the padding.
    """
    config = model.config
    text_config = config.get_text_config()
    known = text_config.pad_token_id
    padding = tokenizer.pad_token_id
    if padding is None or known == padding or (known is not None and not _reads_last_token(model)):
        return
    text_config.pad_token_id = config.pad_token_id = padding


def _reads_last_token(model: Any) -> bool:
    """Whether the head of this class finds a text's end by the padding after it."""
    try:
        return "pad_token_id" in inspect.getsource(type(model).forward)
    except (OSError, TypeError):
        return False


def _drop_unknown_types(model: Any, tokenizer: Any) -> None:
    """Keep the tokenizer from making token types that the model has no embeddings for."""
    if "token_type_ids" not in tokenizer.model_input_names:
        return
    there = getattr(model.config, "type_vocab_size", None)
    with settings_kept(tokenizer):
        types = tokenizer("query", "passage").get("token_type_ids", [0])
    takes = "token_type_ids" in inspect.signature(model.forward).parameters
    if takes and (not there or max(types) < there):
        return
    names = [name for name in tokenizer.model_input_names if name != "token_type_ids"]
    tokenizer.model_input_names = names
    tokenizer.init_kwargs["model_input_names"] = names  # what save_pretrained writes


def separate_pairs(name: str, tokenizer: Any, separator: str | None, *, fresh: bool) -> Any:
    """Return the tokenizer with something between query and passage, if it puts nothing there.

    Without it different splits of one text would be the same pair. What a trained reranker was
    trained with stays, unless a separator is named.

    Args:
        name: Of the model, for messages.
        separator: A text, where ``\\n`` stands for a line break; ``None`` leaves the choice to us.
        fresh: Whether the model has not been trained on pairs yet.

    Raises:
        ModelError: A separator is named and the tokenizer cannot be given one.
    """
    with settings_kept(tokenizer):
        template = PairTemplate.of(tokenizer)
    if len(template.middle):
        if separator is not None:
            logger.warning(
                "sep_token is not used: the tokenizer of %s separates pairs itself.", name
            )
        return tokenizer
    if separator is None and not fresh:
        return tokenizer
    if not getattr(tokenizer, "is_fast", False):
        if separator is None:
            return tokenizer
        raise ModelError(
            f"{name} has a tokenizer without tokenizer.json, which takes no separator - sep_token "
            "is put between query and passage - use the fast tokenizer, or leave sep_token out"
        )
    with settings_kept(tokenizer):
        between = _separator_tokens(name, tokenizer, separator)
        return _rebuilt(tokenizer, between)


def _separator_tokens(name: str, tokenizer: Any, separator: str | None) -> list[int]:
    text = (SEPARATOR if separator is None else separator).replace("\\n", "\n")
    between = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    if between:
        return between
    if separator is None and tokenizer.eos_token_id is not None:
        return [tokenizer.eos_token_id]  # of a tokenizer that drops white space
    raise ModelError(
        f"the tokenizer of {name} makes no token of the separator {text!r} - it is put between "
        "query and passage - use another sep_token"
    )


def _rebuilt(tokenizer: Any, between: list[int]) -> Any:
    """Return a tokenizer that puts these tokens between two texts, and around them what it did.

    It has the general class: those of some families make up their template anew as they load.
    """
    alone = list(tokenizer("query")["input_ids"])
    text = tokenizer("query", add_special_tokens=False)["input_ids"]
    start = next(i for i in range(len(alone)) if alone[i : i + len(text)] == text)
    template = PairTemplate.of(tokenizer)
    parts = {
        "before": alone[:start],
        "after": alone[start + len(text) :],
        "before-pair": template.prefix.tolist(),
        "between": between,
        "after-pair": template.suffix.tolist(),
    }
    labels = {name: f"<{name}>" if ids else "" for name, ids in parts.items()}
    backend = copy.deepcopy(tokenizer.backend_tokenizer)
    backend.post_processor = processors.TemplateProcessing(
        single=_template(labels["before"], "$A", labels["after"]),
        pair=_template(labels["before-pair"], "$A", labels["between"], "$B", labels["after-pair"]),
        special_tokens=[
            {
                "id": label,
                "ids": parts[name],
                "tokens": tokenizer.convert_ids_to_tokens(parts[name]),
            }
            for name, label in labels.items()
            if label
        ],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=tokenizer.model_max_length,
        padding_side=tokenizer.padding_side,
        truncation_side=tokenizer.truncation_side,
        model_input_names=list(tokenizer.model_input_names),
        clean_up_tokenization_spaces=tokenizer.clean_up_tokenization_spaces,
        **{
            name: getattr(tokenizer, name)
            for name in SPECIAL_TOKENS
            if getattr(tokenizer, name, None) is not None
        },
    )


def _template(*parts: str) -> list[str]:
    return [part for part in parts if part]
