"""A language model over one row of tokens: no padding, and each shared beginning once.

The prompt and the query of a group of passages are the same tokens at the same places, and in a
causal model their states depend on nothing that follows. So a micro-batch becomes a tree: a node
holds tokens that several pairs begin with, a leaf those that one pair alone ends with. All nodes go
through the model end to end as one row, each token with the position that it has in its text, and
attention lets a node ask itself and its ancestors. Nodes of one length with the same ancestors
share a kernel call. Scores and gradients are the same but for the order of sums.

No layer is touched: transformers finds attention by a name that is registered here, and hands the
row on to it. A GPU would wait for the many small calls: there one kernel takes all nodes, or
micro-batches stay padded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from reranker_ft.model.fast.varlen import Bounds, Kernel, gpu_kernel

Tokens = npt.NDArray[np.integer[Any]]

NAME = "packed_row"
# Tokens that a shared beginning must save: a node of its own is one more kernel call in each layer.
_WORTH = 8
# Prompt, query, passages that begin alike; further nodes save next to nothing.
_LEVELS = 3
# Layers that look at other positions by attention alone, and at all of them up to a window.
_LAYERS = {"full_attention", "sliding_attention"}


@dataclass(frozen=True)
class Run:
    """Neighbouring nodes of one length with the same ancestors.

    Attributes:
        place: Where they stand in the row.
        count: How many there are.
        path: Where their ancestors stand, the first of the text first.
    """

    place: slice
    count: int
    path: tuple[slice, ...]


@dataclass
class PackedRow:
    """B texts as a tree, in one row of T tokens.

    Attributes:
        tokens: (T,) token ids.
        positions: (T,) place of each token in its texts.
        runs: The nodes, in the order of the row.
        ends: (B,) where the last token of each text stands in the row.
        device: Where the model is.
        kernel: What attends to all nodes in one call; ``None`` for one call a run.
    """

    tokens: list[int]
    positions: list[int]
    runs: list[Run]
    ends: list[int]
    device: torch.device
    kernel: Kernel | None
    _masks: dict[tuple[int, int, torch.dtype], Tensor] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        texts: Sequence[Tokens],
        *,
        device: torch.device | None = None,
        kernel: Kernel | None = None,
    ) -> PackedRow:
        """Find what the texts share; none of them is empty.

        Args:
            device: Where the model is; ``None`` is the CPU.
            kernel: See the attribute.
        """
        row = cls([], [], [], [0] * len(texts), device or torch.device("cpu"), kernel)
        row._add(texts, _in_order(texts), 0, (), _LEVELS)
        return row

    def inputs(self) -> dict[str, Any]:
        """Return what a model takes to give (1, B, V) logits, inside ``packed_attention``."""
        return {
            "input_ids": torch.tensor([self.tokens], device=self.device),
            "position_ids": torch.tensor([self.positions], device=self.device),
            "logits_to_keep": torch.tensor(self.ends, device=self.device),
            "use_cache": False,
            "packed_row": self,
        }

    def _add(
        self,
        texts: Sequence[Tokens],
        members: list[int],
        depth: int,
        path: tuple[slice, ...],
        levels: int,
    ) -> None:
        """Place these texts from ``depth`` on, up to which they are equal.

        Args:
            members: Numbers of the texts, those that begin alike side by side.
        """
        shared = _common(texts[members[0]], texts[members[-1]])
        # The last token is where a score is read: each text has it for itself.
        shared = min(shared, min(len(texts[member]) for member in members) - 1)
        if (len(members) - 1) * (shared - depth) >= _WORTH:
            path = (*path, self._place([texts[members[0]][depth:shared]], depth, path))
            depth = shared
        leaves: list[int] = []
        for _, block in groupby(members, key=lambda member: int(texts[member][shared])):
            alike = list(block)
            if len(alike) == 1 or not levels:
                leaves += alike
            else:
                self._add(texts, alike, depth, path, levels - 1)
        leaves.sort(key=lambda member: len(texts[member]))
        for length, run in groupby(leaves, key=lambda member: len(texts[member])):
            equally_long = list(run)
            place = self._place([texts[member][depth:] for member in equally_long], depth, path)
            for number, member in enumerate(equally_long, 1):
                self.ends[member] = place.start + number * (length - depth) - 1

    def _place(self, nodes: list[Tokens], depth: int, path: tuple[slice, ...]) -> slice:
        start, length = len(self.tokens), len(nodes[0])
        for node in nodes:
            self.tokens += node.tolist()
            self.positions += range(depth, depth + length)
        place = slice(start, len(self.tokens))
        self.runs.append(Run(place, len(nodes), path))
        return place

    @cached_property
    def nodes(self) -> tuple[Tensor, Bounds]:
        """What a kernel is asked: (S,) places of each node's ancestors and of the node; bounds.

        A node's own tokens stand side by side in the row, in the order of the nodes.
        """
        places: list[int] = []
        asking: list[int] = []
        asked: list[int] = []
        for run in self.runs:
            before = [place for part in run.path for place in range(part.start, part.stop)]
            length = (run.place.stop - run.place.start) // run.count
            for start in range(run.place.start, run.place.stop, length):
                places += [*before, *range(start, start + length)]
                asking.append(length)
                asked.append(len(before) + length)
        bounds = Bounds.of(asking, asked, self.device)
        return torch.tensor(places, device=self.device), bounds

    def mask(self, length: int, before: int, dtype: torch.dtype) -> Tensor:
        """Return (length, before + length), added to logits: a node asks what is not behind it."""
        key = (length, before, dtype)
        if key not in self._masks:
            full = torch.full((length, before + length), float("-inf"), dtype=dtype)
            self._masks[key] = full.triu(before + 1)
        return self._masks[key]


def _in_order(texts: Sequence[Tokens]) -> list[int]:
    """Return the numbers of the texts in an order that has those that begin alike side by side."""
    return sorted(range(len(texts)), key=lambda number: texts[number].tobytes())


def _common(one: Tokens, other: Tokens) -> int:
    """Return how many tokens two texts have in common at their beginning."""
    length = min(len(one), len(other))
    different = np.flatnonzero(one[:length] != other[:length])
    return int(different[0]) if len(different) else length


def shared_batches(texts: Sequence[Tokens], max_tokens: int) -> list[list[int]]:
    """Return 0..N-1 in micro-batches of about ``max_tokens`` tokens, what they share counted once.

    Texts that begin alike come together. One that is longer than ``max_tokens`` makes a
    micro-batch of its own.
    """
    batches: list[list[int]] = []
    room = 0
    order = _in_order(texts)
    for place, number in enumerate(order):
        text = texts[number]
        more = len(text) - (_common(texts[order[place - 1]], text) if place else 0)
        if not batches or more > room:
            batches.append([])
            room, more = max_tokens, len(text)
        batches[-1].append(number)
        room -= more
    return batches


def packs(model: Any) -> bool:
    """Whether forwards of a causal language model may run over a packed row.

    It must be on a CPU, or have a kernel on a GPU, find its attention by name, and look at other
    positions by attention alone. Attention with caps, sinks or biases has no sdpa there. Gradient
    checkpointing would compute layers again when the row is gone.

    Args:
        model: That of transformers itself, without wrappers.
    """
    config: Any = getattr(model, "config", None)
    return (
        type(model).__module__.startswith("transformers.")  # other code may know no names
        and model._supports_attention_backend
        and not model._is_stateful
        and config._attn_implementation == "sdpa"
        and set(getattr(config, "layer_types", None) or ()) <= _LAYERS
        and not getattr(config, "attn_logit_softcapping", None)  # older versions do take sdpa
        and getattr(config, "is_causal", True)
        and not config.is_encoder_decoder
        and not (model.training and _is_checkpointed(model))
        and (model.device.type == "cpu" or gpu_kernel(model) is not None)
    )


def _is_checkpointed(model: nn.Module) -> bool:
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def window(config: Any) -> int | None:
    """Return the longest text that lies within every window of attention; ``None`` for any."""
    found: int | None = getattr(config, "sliding_window", None)
    return found


@contextmanager
def packed_attention(model: nn.Module) -> Iterator[None]:
    """Inside, the model's attention takes the argument ``packed_row`` of its forward."""
    config: Any = model.config
    usual = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = usual


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed_row: PackedRow,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Return (1, T, heads, dv) what the tokens of a row gather.

    Args:
        query: (1, heads, T, d); ``key`` is (1, fewer heads or as many, T, d), ``value`` with dv.
    """
    if packed_row.kernel is not None:
        places, bounds = packed_row.nodes
        rows = (states[0].transpose(0, 1) for states in (query, key, value))
        asking, asked, gathered = rows
        found = packed_row.kernel(asking, asked[places], gathered[places], bounds, scaling)
        return found[None], None
    mixed = []
    for run in packed_row.runs:
        asking = _nodes(query[0], run)
        asked, gathered = _with_ancestors(key[0], run), _with_ancestors(value[0], run)
        length = asking.shape[2]
        before = asked.shape[2] - length
        mask = packed_row.mask(length, before, query.dtype) if before and length > 1 else None
        found = scaled_dot_product_attention(
            asking,
            asked,
            gathered,
            attn_mask=mask,
            dropout_p=dropout,
            is_causal=not before,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        mixed.append(found.transpose(1, 2).flatten(0, 1))
    return torch.cat(mixed)[None], None


def _nodes(states: Tensor, run: Run) -> Tensor:
    """Return (n, heads, L, d) of (heads, T, d)."""
    return torch.unflatten(states[:, run.place], 1, (run.count, -1)).transpose(0, 1)


def _with_ancestors(states: Tensor, run: Run) -> Tensor:
    """Return (n, heads, L of the ancestors + L, d) of (heads, T, d)."""
    nodes = _nodes(states, run)
    if not run.path:
        return nodes
    ancestors = [states[:, place].expand(run.count, -1, -1, -1) for place in run.path]
    return torch.cat([*ancestors, nodes], 2)


AttentionInterface.register(NAME, _attend)
