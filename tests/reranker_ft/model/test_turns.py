"""Threads that share a reranker get the scores that each gets alone."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from reranker_ft.score.reranker import Reranker
from tests.reranker_ft.conftest import toy_rows

PAIRS = [(row["query"], text) for row in toy_rows(5) for text in row["pos"] + row["neg"]]


class Meeting:
    """Where two threads wait for each other for a moment; notes whether they met."""

    def __init__(self):
        self.barrier = threading.Barrier(2)
        self.met = False

    def __call__(self, *_):
        try:
            self.barrier.wait(timeout=0.3)
            self.met = True
        except threading.BrokenBarrierError:
            pass


class WatchedTokenizer:
    """A tokenizer that sends those who use it to a meeting."""

    def __init__(self, tokenizer, meeting):
        self.tokenizer = tokenizer
        self.meeting = meeting

    def __call__(self, *texts, **options):
        self.meeting()
        return self.tokenizer(*texts, **options)

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)


@pytest.fixture
def reranker(model_folders):
    return Reranker(model_folders(), devices="cpu")


@pytest.mark.parametrize("place", ["layers", "tokenizer"])
def test_threads_take_turns_where_they_share_what_changes(reranker, place):
    lengths = (12, 40)
    expected = [reranker.compute_score(PAIRS, max_length=length) for length in lengths]
    assert expected[0] != expected[1]
    meeting = Meeting()
    if place == "layers":
        reranker.model.base_model.embeddings.register_forward_pre_hook(meeting)
    else:
        reranker.tokenizer = WatchedTokenizer(reranker.tokenizer, meeting)
    with ThreadPoolExecutor(2) as threads:
        scores = threads.map(lambda n: reranker.compute_score(PAIRS, max_length=n), lengths)
        assert list(scores) == expected
    assert not meeting.met


def test_threads_with_a_model_each_do_not_wait(model_folders):
    shared = Reranker(model_folders(), devices=["cpu", "cpu"])
    meeting = Meeting()
    for model in shared._replicas:
        model.base_model.embeddings.register_forward_pre_hook(meeting)
    shared.compute_score(PAIRS)
    assert meeting.met
