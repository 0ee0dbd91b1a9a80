"""Find the passages of a pool that are closest to a query by an encoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from reranker_ft.mine.bi_encoder import Encoder
from reranker_ft.mine.retrieve import Ranking
from reranker_ft.progress import progress_bar

# Passages encoded, and queries compared with them, at a time: a block of scores is 32 MiB.
POOL_PIECE = 8192
QUERY_BLOCK = 1024


class EncoderSearch:
    """Inner products of embeddings, exact.

    The pool is encoded piece by piece and its embeddings are dropped once each query's best
    ``top_k`` so far are updated, so memory grows with queries x top_k, not with the pool.

    Args:
        encoder: What turns texts into embeddings.
        pool: Passages.
        progress: Show a progress bar.
    """

    def __init__(self, encoder: Encoder, pool: Sequence[str], *, progress: bool = False) -> None:
        self._encoder = encoder
        self._pool = pool
        self._progress = progress

    def search(self, queries: Sequence[str], top_k: int) -> Iterator[Ranking]:
        """As ``Retriever.search``; the whole pool is encoded before the first ranking comes."""
        top_k = min(top_k, len(self._pool))
        query_vectors = self._encoder.encode_queries(queries)  # (Q, D)
        scores = torch.empty(len(queries), 0)  # (Q, K) best so far
        found = torch.empty(len(queries), 0, dtype=torch.int32)  # (Q, K)
        with progress_bar(
            len(self._pool), "encoding the pool", unit="passages", shown=self._progress
        ) as bar:
            for start in range(0, len(self._pool), POOL_PIECE):
                piece = self._pool[start : start + POOL_PIECE]
                vectors = self._encoder.encode_passages(piece)  # (P, D)
                scores, found = _merge_best(scores, found, query_vectors, vectors, start, top_k)
                bar.update(len(piece))
        for row in found:
            yield row.numpy().astype(np.int64)


def _merge_best(
    scores: Tensor, found: Tensor, queries: Tensor, piece: Tensor, start: int, top_k: int
) -> tuple[Tensor, Tensor]:
    """Return the best ``top_k`` of what was found and of a piece of the pool, best first."""
    indices = torch.arange(start, start + len(piece), dtype=torch.int32)  # (P,)
    merged_scores, merged_found = [], []
    # In blocks of queries, so that the score matrix stays small however many queries there are.
    for first in range(0, len(queries), QUERY_BLOCK):
        block = slice(first, first + QUERY_BLOCK)
        fresh = queries[block] @ piece.T  # (B, P)
        both = torch.cat([scores[block], fresh], dim=1)  # (B, K + P)
        both_found = torch.cat([found[block], indices.expand(len(fresh), -1)], dim=1)
        best = both.topk(min(top_k, both.shape[1]), dim=1)
        merged_scores.append(best.values)
        merged_found.append(both_found.gather(1, best.indices))
    return torch.cat(merged_scores), torch.cat(merged_found)
