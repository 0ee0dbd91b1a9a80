"""Encoder-decoders: the encoder reads the input, and the loss is that of the output's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from cocktail.measure.tasks.decoder import TokenTask
from cocktail.measure.tasks.examples import ExampleError, WrittenExample
from cocktail.measure.tasks.task import Batch, by_length, length_limit, pad, pad_mask


class EncoderDecoderTask(TokenTask):
    """Inputs to read and outputs to generate, each tokenised for its side.

    Args:
        max_length: the most tokens of an input, and of an output.

    Raises:
        ExampleError: an output has no tokens.
    """

    def __init__(
        self,
        examples: Sequence[WrittenExample],
        tokenizer: Any,
        model: Any,
        *,
        max_length: int,
    ) -> None:
        limit = length_limit(max_length, tokenizer)
        options = {"truncation": True, "max_length": limit}
        self._inputs = tokenizer([e.input for e in examples], **options)["input_ids"]
        targets = tokenizer(text_target=[e.output for e in examples], **options)["input_ids"]
        for example, target in zip(examples, targets, strict=True):
            if not target:
                raise ExampleError(
                    f"{example.place}: its output has no tokens - there is nothing to measure - "
                    "drop the example"
                )
        super().__init__(examples, targets)
        self._pad = tokenizer.pad_token_id or 0
        self._start = _start_token(model.config, tokenizer)

    def batches(self, max_tokens: int, examples: Sequence[int] | None = None) -> list[Batch]:
        chosen = list(range(len(self.places)) if examples is None else examples)
        lengths = [(len(self._inputs[i]), len(self._targets[i])) for i in chosen]
        made = []
        for batch in by_length(lengths, max_tokens):
            picked = [chosen[place] for place in batch]
            read = [self._inputs[i] or [self._pad] for i in picked]
            written = [[self._start, *self._targets[i][:-1]] for i in picked]
            inputs = {
                "input_ids": pad(read, self._pad),
                "attention_mask": pad_mask(read),
                "decoder_input_ids": pad(written, self._pad),
                "decoder_attention_mask": pad_mask(written),
            }
            made.append(Batch(inputs, self._rows(picked), frozenset(picked)))
        return made

    def _logits(self, model: Any, batch: Batch) -> Tensor:
        inputs = {name: tensor.to(model.device) for name, tensor in batch.inputs.items()}
        logits: Tensor = model(**inputs, use_cache=False).logits  # (B, L, V)
        return logits[inputs["decoder_attention_mask"].bool()]


def _start_token(config: Any, tokenizer: Any) -> int:
    """The token that the decoder reads first, as the model's ``shift_tokens_right`` has it.

    Raises:
        ExampleError: neither the config nor the tokenizer says.
    """
    for token in (
        getattr(config, "decoder_start_token_id", None),
        getattr(config, "bos_token_id", None),
        tokenizer.pad_token_id,
    ):
        if token is not None:
            return int(token)
    raise ExampleError(
        "the model has no decoder_start_token_id, bos or pad token - the decoder must start from "
        "one - set it in config.json"
    )
