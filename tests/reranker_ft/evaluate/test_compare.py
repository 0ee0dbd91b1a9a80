"""Several models on the same queries: figures, differences, table, picture."""

import threading

import numpy as np
import pytest
import torch

from reranker_ft.errors import ArgumentError, DataError
from reranker_ft.evaluate.compare import compare
from reranker_ft.evaluate.metrics import per_query_metrics
from reranker_ft.score.reranker import Reranker
from tests.reranker_ft.conftest import toy_rows


def test_every_model_is_measured_on_every_set(results, model_folders):
    assert [(r.model.split("/")[-1][:4], r.data[-7:]) for r in results] == [
        ("bert", "a.jsonl"),
        ("robe", "a.jsonl"),
        ("bert", "b.jsonl"),
        ("robe", "b.jsonl"),
    ]
    reranker = Reranker(model_folders("roberta"), devices="cpu")
    rows = toy_rows(12)
    scores = [
        np.array(reranker.compute_score([(row["query"], t) for t in row["pos"] + row["neg"]]))
        for row in rows
    ]
    expected = per_query_metrics(scores, [np.array([1, 0, 0, 0, 0, 0])] * 12)
    for name, values in expected.items():
        np.testing.assert_allclose(results[1].per_query[name], values)
        assert results[1].means[name].mean == pytest.approx(values.mean())
        gain = values - results[0].per_query[name]
        assert results[1].differences[name].mean == pytest.approx(gain.mean())
    assert results[0].differences is None


def test_all_devices_share_the_work_and_change_nothing(results, model_folders, write_jsonl):
    options = {"devices": ["cpu", "cpu", "cpu"]}
    data = write_jsonl(toy_rows(12))
    first = {}
    joined = threading.Event()

    def wait_for_another(*_):
        # On a busy machine one thread could be done before the next one starts.
        if first.setdefault("thread", threading.get_ident()) != threading.get_ident():
            joined.set()
        assert joined.wait(60), "one thread does all the work"

    with torch.nn.modules.module.register_module_forward_pre_hook(wait_for_another):
        [shared] = compare([str(model_folders())], [data], reranker_options=options)
    for name, values in results[0].per_query.items():
        np.testing.assert_allclose(shared.per_query[name], values)


def test_the_first_queries_are_taken(model_folders, write_jsonl):
    data = write_jsonl(toy_rows(12))
    options = {"devices": "cpu"}
    [whole] = compare([str(model_folders())], [data], reranker_options=options)
    [first] = compare([str(model_folders())], [data], max_queries=5, reranker_options=options)
    assert first.per_query["map"].tolist() == whole.per_query["map"][:5].tolist()


def test_json_holds_every_figure(results):
    fields = results[1].to_dict()
    assert fields["queries"] == 12
    assert set(fields["metrics"]["ndcg@10"]) == {"mean", "low", "high"}
    assert fields["difference_to_first"].keys() == fields["metrics"].keys()
    assert results[0].to_dict()["difference_to_first"] is None


def test_what_cannot_be_compared_is_refused(model_folders, write_jsonl):
    model, data = str(model_folders()), write_jsonl(toy_rows(2))
    with pytest.raises(ArgumentError, match="more than once"):
        compare([model, model], [data])
    with pytest.raises(ArgumentError, match="max_queries is 0"):
        compare([model], [data], max_queries=0)
    with pytest.raises(DataError, match="`neg` is missing"):
        compare([model], [write_jsonl([{"query": "q", "pos": ["p"]}], "none.jsonl")])
