"""Embeddings: what ranks how high."""

import numpy as np
import pytest
import torch

from reranker_ft.mine import encoder_search
from reranker_ft.mine.encoder_search import EncoderSearch


class TableEncoder:
    """Embeddings that stand in a table."""

    def __init__(self, vectors: dict[str, list[float]]) -> None:
        self.vectors = vectors

    def encode_queries(self, texts):
        return torch.tensor([self.vectors[text] for text in texts])

    encode_passages = encode_queries


@pytest.mark.parametrize(("piece", "block"), [(2, 1), (3, 2), (100, 100)])
def test_encoder_search_is_exact_whatever_the_pieces(monkeypatch, piece, block):
    random = np.random.default_rng(0)
    pool = [f"p{i}" for i in range(23)]
    queries = [f"q{i}" for i in range(5)]
    vectors = {text: random.normal(size=4).tolist() for text in pool + queries}
    monkeypatch.setattr(encoder_search, "POOL_PIECE", piece)
    monkeypatch.setattr(encoder_search, "QUERY_BLOCK", block)
    search = EncoderSearch(TableEncoder(vectors), pool)
    for top_k in (4, 23, 50):
        for query, ranking in zip(queries, search.search(queries, top_k), strict=True):
            products = [np.dot(vectors[query], vectors[text]) for text in pool]
            assert ranking.tolist() == np.argsort(-np.array(products))[:top_k].tolist()
