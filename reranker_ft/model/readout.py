"""Where a language model's score of a pair is read: the logits of its answer's first token."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from reranker_ft.errors import ModelError
from reranker_ft.model.pairs import PairEncoder
from reranker_ft.model.prompts import Prompt, PromptEncoder

CONFIG_KEY = "reranker"
"""Where ``config.json`` records how the model scores."""
_ATTRIBUTE = "reranker_readout"


@dataclass(frozen=True)
class Readout:
    """How a language model scores a pair.

    The score is the logit of ``yes`` at the last position, less that of ``no`` if there is one:
    the log-odds of the two answers.

    Attributes:
        prompt: What the model reads; ``None`` for the tokenizer's own pairs.
        yes: Token id; ``None`` for a model with a head of one logit that reads a prompt.
        no: Token id, or ``None``.
        layer: Of a layerwise model: how many layers it runs; ``None`` for all.
        start_layer: Of a layerwise model: the first layer that was trained to score.
    """

    prompt: Prompt | None
    yes: int | None
    no: int | None = None
    layer: int | None = None
    start_layer: int | None = None

    @classmethod
    def of(cls, prompt: Prompt, tokenizer: Any, *, layer: int | None = None) -> Readout:
        """Return the readout of a prompt, with the ids that the tokenizer has for its answers.

        Raises:
            ModelError: The tokenizer makes no token of an answer, or the same of both.
        """
        yes = _first_token(tokenizer, prompt.yes)
        no = None if prompt.no is None else _first_token(tokenizer, prompt.no)
        if yes == no:
            raise ModelError(
                f"the answers {prompt.yes!r} and {prompt.no!r} begin with the same token ({yes}) - "
                "a score is the difference of two - use other answers"
            )
        return cls(prompt, yes, no, layer)

    def to_dict(self) -> dict[str, Any]:
        """Return the record of it for ``config.json``."""
        return {
            "prompt": None if self.prompt is None else self.prompt.to_dict(),
            "yes_token_id": self.yes,
            "no_token_id": self.no,
            "layer": self.layer,
            "start_layer": self.start_layer,
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Readout:
        """Read the record.

        Raises:
            ModelError: It is damaged.
        """
        prompt, yes, no = (record.get(key) for key in ("prompt", "yes_token_id", "no_token_id"))
        if not all(answer is None or isinstance(answer, int) for answer in (yes, no)):
            raise ModelError(
                f"config.json records the answers {yes!r} and {no!r} - they are token ids - train "
                "or convert the model again"
            )
        return cls(
            None if prompt is None else Prompt.from_dict(prompt),
            yes,
            no,
            record.get("layer"),
            record.get("start_layer"),
        )

    def scores(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        """Return (B,) fp32 scores of one micro-batch, padded on the left.

        Only the last position goes through the output embedding, where the class can leave out the
        others.
        """
        takes = inspect.signature(unwrapped(model).forward).parameters
        if "cutoff_layers" in takes:
            layers = None if self.layer is None else [self.layer]
            return self._of_own_layers(model, self._inputs(inputs, takes), layers)[-1]
        extra = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
        return self.answers(model(**self._inputs(inputs, takes), **extra).logits[:, -1])

    def layer_scores(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        """Return (K, B) fp32 scores at each layer from ``start_layer`` to the last.

        A layer's states go through the last norm and the output embedding, as those of the last do.

        Args:
            inputs: Of one micro-batch, padded on the left.
        """
        inner = unwrapped(model)
        takes = inspect.signature(inner.forward).parameters
        first, last = self.start_layer or 1, inner.config.num_hidden_layers
        given = self._inputs(inputs, takes)
        if "cutoff_layers" in takes:
            return self._of_own_layers(model, given, list(range(first, last + 1)))
        output = model(**given, output_hidden_states=True)
        norm, head = _last_norm(inner), inner.get_output_embeddings()
        scores = [
            self.answers(head(norm(states[:, -1]))) for states in output.hidden_states[first:last]
        ]
        return torch.stack([*scores, self.answers(output.logits[:, -1])])

    def _inputs(self, inputs: dict[str, Tensor], takes: Mapping[str, Any]) -> dict[str, Any]:
        given: dict[str, Any] = dict(inputs)
        mask = inputs.get("attention_mask")
        if mask is not None and "position_ids" in takes:
            # Counted from a text's own first token, so that padding moves nothing.
            given["position_ids"] = (mask.long().cumsum(dim=1) - 1).clamp(min=0)
        if "use_cache" in takes:
            given["use_cache"] = False
        if "cutoff_layers" in takes and "output_hidden_states" in takes:
            given["output_hidden_states"] = True
        return given

    def answers(self, logits: Tensor) -> Tensor:
        """Return (B,) fp32 scores of (B, V) logits at the last positions."""
        scores: Tensor = logits[:, self.yes].float()
        return scores if self.no is None else scores - logits[:, self.no].float()

    def _of_own_layers(
        self, model: nn.Module, inputs: dict[str, Any], layers: list[int] | None
    ) -> Tensor:
        """Return (K, B) of a class that gives (B, L) or (B, L, V) logits for each layer."""
        found = [each[:, -1] for each in model(**inputs, cutoff_layers=layers).logits]
        return torch.stack(
            [each.float() if each.ndim == 1 else self.answers(each) for each in found]
        )


def _last_norm(model: Any) -> Any:
    """Return what a language model's last states go through before its output embedding.

    Raises:
        ModelError: The class calls it by no known name.
    """
    for name in ("norm", "final_layernorm", "ln_f"):
        found = getattr(model.base_model, name, None)
        if found is not None:
            return found
    raise ModelError(
        f"{type(model).__name__} has no norm behind its layers - a layer's score is read through "
        "it - train without start_layer"
    )


@contextmanager
def first_layers(model: Any, count: int | None) -> Iterator[None]:
    """Inside, a language model of transformers runs its first layers alone; ``None`` is all.

    Raises:
        ModelError: It has fewer, or keeps them elsewhere.
    """
    if count is None:
        yield
        return
    body = model.base_model
    layers = getattr(body, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not 1 <= count <= len(layers):
        there = len(layers) if isinstance(layers, nn.ModuleList) else "no list of"
        raise ModelError(
            f"layer {count} is asked for a score and {type(model).__name__} has {there} layers - "
            "a score is read behind one of them - use another (cutoff_layers)"
        )
    body.layers = layers[:count]
    try:
        yield
    finally:
        body.layers = layers


def _first_token(tokenizer: Any, text: str) -> int:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids or ids[0] == tokenizer.unk_token_id:
        raise ModelError(
            f"the tokenizer has no token for the answer {text!r} - a score is read at it - use "
            "other answers"
        )
    return int(ids[0])


def unwrapped(model: Any) -> Any:
    """Return the transformers model inside PEFT, DDP or torch.compile."""
    for name in ("_orig_mod", "module"):
        inner = model._modules.get(name) if isinstance(model, nn.Module) else None
        if isinstance(inner, nn.Module):
            return unwrapped(inner)
    return model.get_base_model() if hasattr(model, "peft_config") else model


def attach_readout(model: nn.Module, readout: Readout) -> None:
    """Make a language model a reranker, for every function here that scores with it.

    Its config records it, so that the saved model is loaded as one.
    """
    inner = unwrapped(model)
    setattr(inner, _ATTRIBUTE, readout)
    setattr(inner.config, CONFIG_KEY, readout.to_dict())


def readout_of(model: nn.Module) -> Readout | None:
    """Return how a language model scores; ``None`` for a model with a head of one logit."""
    found: Readout | None = getattr(unwrapped(model), _ATTRIBUTE, None)
    return found


def settle_instructions(
    model: nn.Module, query: tuple[str | None, str], passage: tuple[str | None, str]
) -> tuple[str | None, str | None]:
    """Put the caller's instructions into a language model's prompt, in place of its own.

    The model then keeps them: its config records the prompt.

    Args:
        query, passage: An instruction, or ``None`` to leave what the prompt has; and the format
            that puts it together with a text.

    Returns:
        The instructions that are still to be put around the texts: all of a model without a
        prompt, and those whose format does not end with the text.
    """
    readout = readout_of(model)
    if readout is None or readout.prompt is None:
        return query[0], passage[0]
    prompt, left = readout.prompt, [query[0], passage[0]]
    if query[0] is not None and prompt.has_instruction:
        prompt, left[0] = replace(prompt, instruction=query[0]), None
    for number, (name, given) in enumerate((("query", query), ("passage", passage))):
        if left[number] is not None:
            prefix = _prefix(*given)
            given_prefix: dict[str, Any] = {name: prefix or ""}
            prompt = replace(prompt, **given_prefix)
            left[number] = left[number] if prefix is None else None
    attach_readout(model, replace(readout, prompt=prompt))
    return left[0], left[1]


def _prefix(instruction: str | None, template: str) -> str | None:
    """Return what the format puts before a text; ``None`` if it puts something behind it, too."""
    whole = template.replace("\\n", "\n").format(instruction, "\0")
    return whole[:-1] if whole.endswith("\0") else None


def pair_encoder(model: nn.Module, tokenizer: Any, **lengths: Any) -> PairEncoder:
    """Return what turns pairs into the tokens that this model scores.

    Args:
        lengths: As for PairEncoder.

    Raises:
        ArgumentError: The lengths leave no room for text.
    """
    readout = readout_of(model)
    if readout is None:
        return PairEncoder(tokenizer, **lengths)
    left = readout.yes is not None  # a head finds a text's end by itself
    if readout.prompt is None:
        return PairEncoder(tokenizer, left=left, **lengths)
    return PromptEncoder(tokenizer, readout.prompt, left=left, **lengths)
