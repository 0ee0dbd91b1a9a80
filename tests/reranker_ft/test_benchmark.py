"""Tasks of mteb, built from local JSONL, against mteb's own figures."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from reranker_ft.api import evaluate_rerankers
from reranker_ft.benchmark import benchmark_examples, load_benchmark
from reranker_ft.cli.main import main
from reranker_ft.errors import ArgumentError
from reranker_ft.evaluate.metrics import bootstrap_average, bootstrap_mean
from reranker_ft.score.reranker import Reranker
from tests.mteb_tasks import bitext_task, local_task
from tests.reranker_ft.conftest import toy_rows

mteb = pytest.importorskip("mteb")

CPU = {"devices": "cpu", "max_length": 48}


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


def test_of_several_tasks_there_is_an_average(model_folders, write_jsonl, monkeypatch):
    long, short = write_jsonl(toy_rows(12), "long.jsonl"), write_jsonl(toy_rows(5), "short.jsonl")
    tasks = {
        "Long": local_task(long, name="Long", candidates=False),
        "Short": local_task(short, name="Short", candidates=False),
    }
    monkeypatch.setattr(mteb, "get_task", lambda name: tasks[name])
    models = [str(model_folders(kind)) for kind in ("bert", "roberta")]
    words = ["evaluate", *models, "--benchmark", "Long", "--benchmark", "Short"]
    words += ["--devices", "cpu", "--max-length", "48", "--json"]
    printed = CliRunner().invoke(main, words)
    assert printed.exit_code == 0, printed.output
    results = json.loads(printed.stdout)["results"]
    data = ["Long", "Short", "average over 2 tasks"]
    assert [result["data"] for result in results] == [name for name in data for _ in range(3)]
    rows = [*models, "BM25 (first stage)"]
    assert [result["model"] for result in results] == rows * 3
    for place in range(3):
        one, other, both = (results[3 * group + place] for group in range(3))
        for side in ("metrics", "difference_to_first") if place else ("metrics",):
            halves = [each[side]["map"]["mean"] for each in (one, other)]
            assert both[side]["map"]["mean"] == pytest.approx(sum(halves) / 2)
        assert both["queries"] == 17
    assert CliRunner().invoke(main, words[:-1]).stdout.count("average over 2 tasks") == 1


def test_an_average_of_one_group_is_its_mean():
    values = np.random.default_rng(0).random(9)
    ours, theirs = bootstrap_average([values], [1.0]), bootstrap_mean(values)
    assert ours.to_dict() == pytest.approx(theirs.to_dict(), abs=0.02)


def test_an_interval_of_an_average_holds_the_truth_as_often_as_it_says():
    draw = np.random.default_rng(1)
    truths = (0.2, 0.6, 0.5)
    hits = 0
    for seed in range(200):
        groups = [
            draw.normal(truth, 0.3, size) for truth, size in zip(truths, (5, 8, 60), strict=True)
        ]
        found = bootstrap_average(groups, [1 / 3] * 3, seed=seed, samples=500)
        hits += found.low <= np.mean(truths) <= found.high
    assert 180 <= hits <= 198


def test_examples_are_what_the_task_says(rows):
    found = benchmark_examples(local_task(rows), max_queries=7, negatives=2, seed=3)
    told = {row["query"]: row for row in map(json.loads, rows.read_text().splitlines())}
    assert len(found) == 7
    assert found == benchmark_examples(local_task(rows), max_queries=7, negatives=2, seed=3)
    assert found != benchmark_examples(local_task(rows), max_queries=7, negatives=2, seed=4)
    for example in found:
        texts = told[example.query]["pos"] + told[example.query]["neg"]
        titled = [f"red {text}".strip() for text in texts]
        assert list(example.positives) == titled[:2]  # graded 2 and 1
        assert len(example.negatives) == 2 and set(example.negatives) <= set(titled[2:])
        assert example.place.startswith("LocalTask query q")


def test_negatives_of_a_retrieval_task_are_the_first_stages_best(rows):
    task = local_task(rows, candidates=False)
    [ranked] = load_benchmark(task)
    for example in ranked.examples(3, seed=0):
        candidates = [text for query, text in ranked.pairs if query == example.query]
        irrelevant = [text for text in candidates if text not in example.positives]
        assert list(example.negatives) == list(dict.fromkeys(irrelevant))[:3]


def test_what_ranks_no_texts_is_refused():
    with pytest.raises(ArgumentError, match="a reranker ranks the passages of queries"):
        evaluate_rerankers("model", benchmark=bitext_task())
    with pytest.raises(ArgumentError, match="neither data nor a benchmark"):
        evaluate_rerankers("model")
