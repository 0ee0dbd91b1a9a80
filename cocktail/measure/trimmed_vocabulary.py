"""Keep only the words that the examples use in the model that a search runs.

Two thirds of a multilingual encoder are word embeddings (192 of the 278 million parameters of XLM-R
base), of which a few examples look up only one or a few per cent. The rest affects no output and no
gradient, but would be mixed, held and differentiated each time. This is vocabulary trimming, here
only during a search: Ushio, Zhou and Camacho-Collados, "An Efficient Multilingual Language Model
Compression through Vocabulary Trimming" (2023).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own abbreviation

from cocktail.checkpoint.model import MAIN
from cocktail.measure.mixture import Mixture
from cocktail.measure.tasks.task import Batch, Task
from cocktail.plan.alignment import Source
from cocktail.system.heap import trim_heap
from cocktail.tensors.dtypes import ITEM_SIZE, torch_dtype
from cocktail.tensors.reading import TensorReader


class TrimmedEmbedding(nn.Module):
    """Some rows of an embedding, looked up by their tokens in the full one.

    Looking up a token without a row is an error.

    Args:
        tokens: (U,) the tokens whose rows are kept.
    """

    places: Tensor

    def __init__(self, embedding: nn.Embedding, tokens: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(embedding.weight.detach()[tokens])
        places = torch.full((embedding.num_embeddings,), -1, device=tokens.device)
        places[tokens] = torch.arange(len(tokens), device=tokens.device)
        self.register_buffer("places", places, persistent=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        return F.embedding(self.places[input_ids], self.weight)


def trim_vocabulary(mixture: Mixture, tasks: Sequence[Task]) -> None:
    """Reduce the model, and what is read of every ingredient, to the words that these tasks use.

    Outputs and gradients stay the same. The rows of every ingredient are read once and held.
    Nothing is done where they would take more room than they save, or where the table is more than
    a lookup: tied to an output, changed by an adapter, or in a model with custom code.
    """
    embedding = _lookup_table(mixture.model)
    if embedding is None:
        return
    names = [name for name, home in mixture.homes.items() if home is embedding.weight]
    tensor = next(t for t in mixture.plan.tensors if t.part == MAIN and t.name in names)
    tokens = _tokens(tasks, mixture.forward_tokens)
    if embedding.padding_idx is not None:  # some models pad internally
        tokens = torch.unique(torch.cat([tokens, torch.tensor([embedding.padding_idx])]))
    adapted = any(source.info.delta is not None for source in tensor.sources)
    if adapted or len(tokens) * (1 + len(tensor.sources)) >= embedding.num_embeddings:
        return
    with TensorReader() as reader:
        sources = tuple(_rows_of(source, tokens.tolist(), reader) for source in tensor.sources)
    trimmed = TrimmedEmbedding(embedding, tokens.to(embedding.weight.device))
    mixture.model.set_input_embeddings(trimmed)
    mixture.homes[tensor.name] = trimmed.weight
    shape = tuple(trimmed.weight.shape)
    mixture.plan = mixture.plan.with_tensor(replace(tensor, shape=shape, sources=sources))
    trim_heap()


def _lookup_table(model: Any) -> nn.Embedding | None:
    """The embedding of the input's tokens, if its weight is used for nothing else."""
    if not type(model).__module__.startswith("transformers."):
        return None
    embedding = model.get_input_embeddings()
    if type(embedding) is not nn.Embedding or embedding.max_norm is not None:
        return None
    users = [
        module
        for _, module in model.named_modules(remove_duplicate=False)
        if any(own is embedding.weight for own in module.parameters(recurse=False))
    ]
    return embedding if users == [embedding] else None


def _tokens(tasks: Sequence[Task], max_tokens: int) -> Tensor:
    """(U,) the tokens that any batch may hold, each once."""
    ids = [
        tensor.flatten()
        for task in tasks
        for batch in (*task.batches(max_tokens), *_padded(task, max_tokens))
        for name, tensor in batch.inputs.items()
        if name.endswith("input_ids")
    ]
    tokens: Tensor = torch.unique(torch.cat(ids))
    return tokens


def _padded(task: Task, max_tokens: int) -> list[Batch]:
    """Batches that include padding if any can, as full ones may hold texts of equal length."""
    batches = sorted(task.batches(max_tokens), key=lambda batch: batch.tokens / batch.texts)
    ends = {min(batches[0].examples), min(batches[-1].examples)}
    return task.batches(sys.maxsize, sorted(ends))


def _rows_of(source: Source, tokens: Sequence[int], reader: TensorReader) -> Source:
    """The source with only the rows of these tokens as its data, held in memory."""
    info = source.info
    width = math.prod(info.shape[1:])
    rows = torch.empty((len(tokens), width), dtype=torch_dtype(info.dtype))
    buffer = torch.empty(width * ITEM_SIZE[info.dtype], dtype=torch.uint8)
    for row, token in zip(rows, tokens, strict=True):
        row.copy_(reader.read(info, token * width, (token + 1) * width, buffer))
    shape = (len(tokens), *info.shape[1:])
    return replace(source, info=replace(info, shape=shape, mapped=rows.view(shape)))
