"""Scored lines: every kind of line, streamed, order and fields kept; teacher scores."""

import json

import pytest

from reranker_ft.data.examples import ExampleFiles
from reranker_ft.errors import ArgumentError, DataError
from reranker_ft.score import records as records_module
from reranker_ft.score.distil import add_teacher_scores
from reranker_ft.score.records import score_file
from reranker_ft.score.reranker import Reranker
from tests.reranker_ft.conftest import toy_rows


@pytest.fixture(scope="module")
def reranker(model_folders):
    return Reranker(model_folders(), devices="cpu")


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("chunk_pairs", [1, 7, 2048])
def test_teacher_scores_stand_beside_their_passages(
    tmp_path, write_jsonl, reranker, monkeypatch, chunk_pairs
):
    monkeypatch.setattr(records_module, "CHUNK_PAIRS", chunk_pairs)
    rows = [{"id": i, **row} for i, row in enumerate(toy_rows(5))]
    data = write_jsonl(rows)
    counted = add_teacher_scores(reranker, data, tmp_path / "scored.jsonl")
    assert counted == {"lines": 5, "pairs": 30}
    for row, scored in zip(rows, read(tmp_path / "scored.jsonl"), strict=True):
        query = row["query"]
        assert {name: scored[name] for name in row} == row
        for name in ("pos", "neg"):
            expected = reranker.compute_score([(query, text) for text in row[name]])
            assert scored[f"{name}_scores"] == pytest.approx(expected, abs=1e-5)
    assert ExampleFiles([tmp_path / "scored.jsonl"], scores_required=True)[4].neg_scores is not None


def test_a_line_s_prompt_replaces_the_instruction(tmp_path, write_jsonl, model_folders):
    instructed = Reranker(model_folders(), devices="cpu", query_instruction_for_rerank="what is ")
    row = {"query": "red", "pos": ["apple"], "neg": []}
    pair = {"query": "red", "passage": "apple"}
    prompt = {"prompt": "who is "}
    data = write_jsonl([row, row | prompt, pair, pair | prompt, pair | {"passage_prompt": "who "}])
    score_file(instructed, data, tmp_path / "scored.jsonl")
    first, second, third, fourth, fifth = read(tmp_path / "scored.jsonl")
    plain = Reranker(model_folders(), devices="cpu")
    expected = plain.compute_score([("what is red", "apple"), ("who is red", "apple")])
    assert [*first["pos_scores"], *second["pos_scores"]] == pytest.approx(expected, abs=1e-5)
    assert [third["score"], fourth["score"]] == pytest.approx(expected, abs=1e-5)
    [passage_prompted] = plain.compute_score([("what is red", "who apple")])
    assert fifth["score"] == pytest.approx(passage_prompted, abs=1e-5)


def test_distil_takes_training_data_only_and_replaces_nothing(tmp_path, write_jsonl, reranker):
    pairs = write_jsonl([{"query": "a", "passage": "b"}], "pairs.jsonl")
    with pytest.raises(DataError, match="pos"):
        add_teacher_scores(reranker, pairs, tmp_path / "out.jsonl")
    data = write_jsonl(toy_rows(2))
    with pytest.raises(ArgumentError, match="exists"):
        add_teacher_scores(reranker, data, pairs)
    assert read(pairs) == [{"query": "a", "passage": "b"}]


def test_a_run_that_breaks_leaves_no_file(tmp_path, write_jsonl, reranker, monkeypatch):
    data = write_jsonl(toy_rows(4))
    monkeypatch.setattr(records_module, "CHUNK_PAIRS", 6)
    real, calls = reranker.score_pairs, []

    def breaks(pairs):
        calls.append(pairs)
        if len(calls) == 3:
            raise RuntimeError("power cut")
        return real(pairs)

    monkeypatch.setattr(reranker, "score_pairs", breaks)
    with pytest.raises(RuntimeError, match="power cut"):
        score_file(reranker, data, tmp_path / "out.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["data.jsonl"]
