"""Turn texts into embeddings, for retrieval with a bi-encoder."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from reranker_ft.data.instructions import Instructions
from reranker_ft.errors import ArgumentError
from reranker_ft.model.devices import parse_devices
from reranker_ft.model.forward import attention_without_plans
from reranker_ft.model.load import model_errors
from reranker_ft.model.precision import dtype_asked_for
from reranker_ft.model.quiet_bars import bars_on_terminals_only
from reranker_ft.model.scoring import (
    default_micro_batch_tokens,
    position_limit,
    to_device,
    token_batches,
)

Pooling = Literal["cls", "mean", "last_token"]


class Encoder(Protocol):
    """Gives embeddings whose inner product says how well a passage suits a query."""

    def encode_queries(self, texts: Sequence[str]) -> Tensor:
        """Return the (N, D) fp32 embeddings on the CPU."""

    def encode_passages(self, texts: Sequence[str]) -> Tensor:
        """Return the (N, D) fp32 embeddings on the CPU."""


@dataclass(frozen=True)
class EncoderOptions:
    """How an encoder is loaded and run.

    Attributes:
        pooling: How token vectors become one vector. ``None`` takes the pooling stored with the
            model, which sentence-transformers knows how to read.
        normalize: Scale embeddings to length 1, so that inner products are cosines.
        instructions: What is put around queries and passages; the query's replaces a prompt that
            is stored with the model.
        query_max_length, passage_max_length: Maximum tokens of a text, special tokens included;
            never more than the model has positions for.
        device: As a Reranker names it; ``None`` takes the first GPU, else the CPU.
        use_fp16, use_bf16: As for a Reranker: on a CPU both mean bf16, where that is faster.

    Raises:
        ArgumentError: A length below 1.
    """

    pooling: Pooling | None = None
    normalize: bool = True
    instructions: Instructions = field(default_factory=Instructions)
    query_max_length: int = 512
    passage_max_length: int = 512
    device: str | None = None
    use_fp16: bool = False
    use_bf16: bool = False
    trust_remote_code: bool = False
    cache_dir: str | None = None

    def __post_init__(self) -> None:
        for name in ("query_max_length", "passage_max_length"):
            value = getattr(self, name)
            if value < 1:
                raise ArgumentError(
                    f"the encoder's {name} is {value} - it counts tokens - use 1 or more"
                )

    def dtype(self, device: torch.device) -> torch.dtype:
        """Return the type to compute in there.

        Raises:
            ArgumentError: Two of them are asked for.
        """
        return dtype_asked_for(self.use_fp16, self.use_bf16, [device], "encoding")


def load_encoder(name_or_path: str, options: EncoderOptions) -> Encoder:
    """Load by sentence-transformers if it is there and no pooling is named, else transformers.

    Raises:
        ModelError: Nothing loads from there.
        ArgumentError: A device that is not there, or a length without room for text.
    """
    stored = options.pooling is None and importlib.util.find_spec("sentence_transformers")
    with model_errors(name_or_path), bars_on_terminals_only():
        return (StoredPoolingEncoder if stored else PooledEncoder)(name_or_path, options)


class StoredPoolingEncoder:
    """A model with its own pooling and prompts, run by sentence-transformers."""

    def __init__(self, name_or_path: str, options: EncoderOptions) -> None:
        from sentence_transformers import SentenceTransformer  # noqa: PLC0415 - optional

        self._options = options
        self._model = SentenceTransformer(
            name_or_path,
            device=str(parse_devices(options.device)[0]),
            trust_remote_code=options.trust_remote_code,
            cache_folder=options.cache_dir,
        )
        self._model.to(options.dtype(self._model.device))

    def encode_queries(self, texts: Sequence[str]) -> Tensor:
        """As ``Encoder.encode_queries``."""
        instructions, max_length = self._options.instructions, self._options.query_max_length
        if instructions.query is None:
            return self._encode(self._model.encode_query, texts, max_length)
        instructed = [instructions.of_query(text) for text in texts]
        return self._encode(self._model.encode, instructed, max_length)

    def encode_passages(self, texts: Sequence[str]) -> Tensor:
        """As ``Encoder.encode_passages``."""
        instructed = [self._options.instructions.of_passage(text) for text in texts]
        return self._encode(
            self._model.encode_document, instructed, self._options.passage_max_length
        )

    @attention_without_plans()
    def _encode(self, encode: Any, texts: Sequence[str], max_length: int) -> Tensor:
        limit = self._model.max_seq_length
        self._model.max_seq_length = min(max_length, limit or max_length)
        try:
            vectors = encode(
                list(texts),
                normalize_embeddings=self._options.normalize,
                convert_to_tensor=True,
                show_progress_bar=False,
            )
        finally:
            self._model.max_seq_length = limit
        return torch.as_tensor(vectors).float().cpu()


class PooledEncoder:
    """A plain transformers encoder with a named pooling; mean if none is named."""

    def __init__(self, name_or_path: str, options: EncoderOptions) -> None:
        self._options = options
        loading = {
            "trust_remote_code": options.trust_remote_code,
            "cache_dir": options.cache_dir,
        }
        self._device = parse_devices(options.device)[0]
        self._tokenizer = AutoTokenizer.from_pretrained(name_or_path, **loading)
        special = self._tokenizer.num_special_tokens_to_add()
        shortest = min(options.query_max_length, options.passage_max_length)
        if shortest <= special:
            raise ArgumentError(
                f"the encoder is to read {shortest} tokens - {special} of a text's are special - "
                f"use {special + 1} or more"
            )
        model = AutoModel.from_pretrained(name_or_path, **loading)
        self._limit = min(self._tokenizer.model_max_length, position_limit(model) or sys.maxsize)
        self._model = model.to(self._device, options.dtype(self._device)).eval()

    def encode_queries(self, texts: Sequence[str]) -> Tensor:
        """As ``Encoder.encode_queries``."""
        instructed = [self._options.instructions.of_query(text) for text in texts]
        return self._encode(instructed, self._options.query_max_length)

    def encode_passages(self, texts: Sequence[str]) -> Tensor:
        """As ``Encoder.encode_passages``."""
        instructed = [self._options.instructions.of_passage(text) for text in texts]
        return self._encode(instructed, self._options.passage_max_length)

    @attention_without_plans()
    @torch.inference_mode()
    def _encode(self, texts: Sequence[str], max_length: int) -> Tensor:
        limit = min(max_length, self._limit)
        ids = self._tokenizer(list(texts), truncation=True, max_length=limit)["input_ids"]
        rows: list[Tensor] = []
        order: list[int] = []
        budget = default_micro_batch_tokens(self._device)
        for batch in token_batches([len(row) for row in ids], budget):
            inputs = self._tokenizer.pad(
                {"input_ids": [ids[i] for i in batch]}, return_tensors="pt"
            )
            hidden = self._model(**to_device(dict(inputs), self._device)).last_hidden_state
            rows.append(self._pool(hidden.float(), inputs["attention_mask"].to(self._device)).cpu())
            order += batch
        vectors = torch.cat(rows)
        return torch.empty_like(vectors).index_copy_(0, torch.tensor(order), vectors)

    def _pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Return the (B, L, D) token vectors and their (B, L) mask -> (B, D) embeddings."""
        positions = torch.arange(mask.shape[1], device=mask.device)  # (L,)
        rows = torch.arange(len(mask), device=mask.device)  # (B,)
        if self._options.pooling == "cls":
            pooled = hidden[rows, mask.argmax(1)]
        elif self._options.pooling == "last_token":
            pooled = hidden[rows, (mask * positions).argmax(1)]
        else:
            weights = mask[:, :, None].to(hidden.dtype)
            pooled = (hidden * weights).sum(1) / weights.sum(1)
        return torch.nn.functional.normalize(pooled, dim=1) if self._options.normalize else pooled
