"""Tasks of mteb, built from local JSONL, against mteb's own figures."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from reranker_ft.api import evaluate_rerankers
from reranker_ft.cli.main import main
from reranker_ft.errors import ArgumentError
from reranker_ft.score.reranker import Reranker
from tests.reranker_ft.conftest import toy_rows

mteb = pytest.importorskip("mteb")

CPU = {"devices": "cpu", "max_length": 48}


def local_task(path, *, name="LocalTask", candidates=True, identical=False):
    """A task of the queries of a JSONL file: their passages are the corpus, one is graded 2."""
    from datasets import Dataset
    from mteb.abstasks import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata

    class Local(AbsTaskRetrieval):
        ignore_identical_ids = identical
        metadata = TaskMetadata(
            name=name, type="Reranking" if candidates else "Retrieval", main_score="ndcg_at_10",
            description="Made for a test.", dataset={"path": "NA", "revision": "NA"},
            category="t2t", eval_splits=["test"], eval_langs=["eng-Latn"], modalities=["text"],
        )  # fmt: skip

        def load_data(self, num_proc=None, **_):
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            corpus, judged, ranked = [], {}, {}
            for number, row in enumerate(rows):
                keys = [f"{number}-{i}" for i in range(len(row["pos"] + row["neg"]))]
                texts = zip(keys, row["pos"] + row["neg"], strict=True)
                corpus += [{"id": key, "title": "red", "text": text} for key, text in texts]
                judged[f"q{number}"] = {keys[0]: 2, keys[1]: 1, keys[2]: 0}
                ranked[f"q{number}"] = keys[1:] if number % 2 else keys
            queries = [{"id": f"q{i}", "text": row["query"]} for i, row in enumerate(rows)]
            self.dataset = {
                "default": {
                    "test": {
                        "corpus": Dataset.from_list(corpus),
                        "queries": Dataset.from_list(queries),
                        "relevant_docs": judged,
                        "top_ranked": ranked if candidates else None,
                    }
                }
            }
            self.data_loaded = True

    return Local()


class AsMteb:
    """A reranker behind mteb's protocol of cross-encoders."""

    mteb_model_meta = None

    def __init__(self, model):
        self.reranker = Reranker(model, **CPU)

    def predict(self, inputs1, inputs2, **_):
        queries, passages = (
            [text for batch in inputs for text in batch["text"]] for inputs in (inputs1, inputs2)
        )
        return np.array(self.reranker.compute_score(list(zip(queries, passages, strict=True))))


@pytest.fixture
def rows(write_jsonl):
    return write_jsonl(toy_rows(12))


def test_the_figures_are_those_of_mteb(model_folders, rows):
    models = [model_folders("bert"), model_folders("roberta")]
    found = evaluate_rerankers(
        models, benchmark=local_task(rows), reranker_options=CPU, progress=False
    )
    assert [result.data for result in found.results] == ["LocalTask"] * 2
    for model, result in zip(models, found.results, strict=True):
        theirs = local_task(rows).evaluate(AsMteb(model), "test", encode_kwargs={})["default"]
        # Half of the queries lack their best passage among the candidates, which costs them.
        assert result.means["ndcg@10"].mean == pytest.approx(theirs["ndcg_at_10"], abs=1e-5)
        assert result.means["map"].mean == pytest.approx(theirs["map_at_1000"], abs=1e-5)
        assert result.means["recall@1"].mean == pytest.approx(theirs["recall_at_1"], abs=1e-5)


def test_retrieval_is_ranked_after_a_first_stage_of_its_own(model_folders, rows):
    found = evaluate_rerankers(
        model_folders("bert"),
        benchmark=local_task(rows, candidates=False),
        max_queries=7,
        reranker_options=CPU,
        progress=False,
    )
    own, first = found.results
    assert first.model == "BM25 (first stage)"
    assert first.differences is not None
    assert len(first.per_query["map"]) == len(own.per_query["map"]) == 7
    assert first.means["recall@10"].mean > 0


def test_the_command_takes_names_and_files(model_folders, rows, monkeypatch, tmp_path):
    tasks = {"LocalTask": local_task(rows)}
    monkeypatch.setattr(mteb, "get_task", lambda name: tasks[name])
    words = ["evaluate", model_folders("bert"), "--benchmark", "LocalTask", "--data", rows]
    words += ["--devices", "cpu", "--max-length", "48"]
    printed = CliRunner().invoke(main, [*map(str, words), "--json"])
    assert printed.exit_code == 0, printed.output
    results = json.loads(printed.stdout)["results"]
    assert [result["data"] for result in results] == [str(rows), "LocalTask"]
    shown = CliRunner().invoke(main, list(map(str, words))).stdout
    assert "LocalTask, 12 queries" in shown
    assert f"{results[1]['metrics']['ndcg@10']['mean']:.3f}" in shown
    unknown = CliRunner().invoke(main, ["evaluate", "model", "--benchmark", "Nothing"])
    assert unknown.exit_code == 1
    assert "mteb has no benchmark or task 'Nothing'" in unknown.stderr


def test_what_ranks_no_texts_is_refused():
    from mteb.mocks.mock_tasks import MockBitextMiningTask

    with pytest.raises(ArgumentError, match="a reranker ranks the passages of queries"):
        evaluate_rerankers("model", benchmark=MockBitextMiningTask())
    with pytest.raises(ArgumentError, match="neither data nor a benchmark"):
        evaluate_rerankers("model")
