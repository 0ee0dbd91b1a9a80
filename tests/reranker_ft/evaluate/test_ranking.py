"""Held-out queries: their relevance, loss and spread, on any number of processes."""

import json
import math

import numpy as np
import pytest
import torch

from reranker_ft.data.examples import parse_example
from reranker_ft.data.instructions import Instructions
from reranker_ft.evaluate.ranking import (
    RankingSet,
    interleaved,
    ranking_loss,
    ranking_metrics,
    score_spread,
)
from reranker_ft.model.pairs import PairEncoder
from tests.reranker_ft.conftest import make_tokenizer, toy_rows

SCORES = [np.array([2.0, 1.0, 0.0], np.float32), np.array([0.0, 3.0], np.float32)]
RELEVANCE = [np.array([1, 0, 0]), np.array([1, 0])]


def test_the_loss_by_hand():
    first = math.log(math.exp(2) + math.exp(1) + 1) - 2
    second = math.log(1 + math.exp(3))
    assert ranking_loss(SCORES, RELEVANCE) == pytest.approx((first + second) / 2, rel=1e-6)


def test_each_positive_is_compared_with_the_negatives_alone():
    scores, relevance = [np.array([2.0, 5.0, 0.0], np.float32)], [np.array([1, 1, 0])]
    by_hand = [math.log(math.exp(s) + 1) - s for s in (2, 5)]
    assert ranking_loss(scores, relevance) == pytest.approx(np.mean(by_hand), rel=1e-5)


def test_the_spread_and_the_means_are_over_queries():
    by_hand = np.mean([np.std([2, 1, 0]), np.std([0, 3])])
    assert score_spread(SCORES) == pytest.approx(by_hand)
    assert ranking_metrics(SCORES, RELEVANCE)["mrr@10"].mean == 0.75


@pytest.mark.parametrize("processes", [1, 2, 3, 9])
def test_processes_together_rank_every_query_in_the_order_of_the_file(processes):
    examples = [parse_example(json.dumps(row).encode()) for row in toy_rows(7)]
    encoder = PairEncoder(make_tokenizer("bert"))

    def lengths(**share):
        ranking = RankingSet(examples, encoder, Instructions(), **share)
        return ranking.scores(lambda pairs: torch.from_numpy(pairs.lengths.astype(np.float32)))

    parts = [lengths(process=p, processes=processes) for p in range(processes)]
    together = interleaved(parts)
    assert [row.tolist() for row in together] == [row.tolist() for row in lengths()]


def test_a_text_that_is_both_counts_as_the_positive():
    example = parse_example(b'{"query": "red", "pos": ["a", "a"], "neg": ["a", "b"]}')
    ranking = RankingSet([example], PairEncoder(make_tokenizer("bert")), Instructions())
    assert ranking.relevance[0].tolist() == [1, 0]
