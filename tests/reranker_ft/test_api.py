"""The public calls: what the commands do, from Python."""

import json

import pytest
from click.testing import CliRunner

import reranker_ft
from reranker_ft.cli.main import main
from reranker_ft.errors import ArgumentError
from tests.reranker_ft.conftest import toy_rows

CPU = {"devices": "cpu", "max_length": 48}


def printed(*words):
    result = CliRunner().invoke(main, [*map(str, words), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture
def data(write_jsonl):
    return write_jsonl(toy_rows(12))


def test_training(model_folders, data, write_jsonl, tmp_path):
    dev = write_jsonl(toy_rows(6), "dev.jsonl")
    done = reranker_ft.train_reranker(
        model_folders("bert"),
        data,
        tmp_path / "out",
        eval_data=dev,
        train_group_size=4,
        max_length=48,
        num_train_epochs=1,
        per_device_train_batch_size=4,
        save_strategy="no",
        report_to="none",
    )
    assert done.steps == 3
    assert [entry["step"] for entry in done.evaluations] == [0, 3]
    assert json.loads(json.dumps(done.to_dict()))["output"] == str(tmp_path / "out")
    assert done.next_command == (
        f"cocktail search {model_folders('bert')} {tmp_path / 'out'} --data {dev} "
        f"--output {tmp_path / 'out'}-mixed"
    )
    table = done._repr_html_()
    assert "target NDCG@10" in table
    assert table.count("<tr>") == 3
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_a_flag_that_is_none_is_refused(data, tmp_path):
    with pytest.raises(ArgumentError, match=r"no such flag: learning_rat - .* learning_rate"):
        reranker_ft.train_reranker("model", data, tmp_path / "out", learning_rat=1)


def test_evaluation(model_folders, data):
    models = [model_folders("bert"), model_folders("roberta")]
    found = reranker_ft.evaluate_rerankers(models, data, reranker_options=CPU, progress=False)
    words = ["evaluate", *models, "--data", data, "--devices", "cpu", "--max-length", 48]
    assert found.to_dict() == printed(*words)
    table = found._repr_html_()
    assert table.count("<table>") == 1
    assert "less the first" in table


def test_mining(data, model_folders, tmp_path):
    found = reranker_ft.mine_negatives(
        data, tmp_path / "mined.jsonl", range_for_sampling="0-9", negative_number=3, progress=False
    )
    words = ["mine", "--input-file", data, "--output-file", tmp_path / "again.jsonl"]
    told = printed(*words, "--range-for-sampling", "0-9", "--negative-number", 3)
    assert {**found.to_dict(), "output": told["output"]} == told
    assert (tmp_path / "mined.jsonl").read_text() == (tmp_path / "again.jsonl").read_text()
    assert "mined.jsonl" in found._repr_html_()
    with pytest.raises(ArgumentError, match="margin is given without reranker"):
        reranker_ft.mine_negatives(data, tmp_path / "third.jsonl", margin=1.0)


def test_distillation(data, model_folders, tmp_path):
    found = reranker_ft.distil_scores(
        model_folders("bert"), data, tmp_path / "scored.jsonl", reranker_options=CPU, progress=False
    )
    assert (found.lines, found.pairs) == (12, 72)
    assert found.to_dict()["output"] == str(tmp_path / "scored.jsonl")
    assert "72" in found._repr_html_()


def test_checking(data, model_folders):
    found = reranker_ft.check_data([data], model_name_or_path=str(model_folders("bert")))
    words = ["check", data, "--model-name-or-path", model_folders("bert"), "--json"]
    told = CliRunner().invoke(main, list(map(str, words)))
    assert json.loads(json.dumps(found.to_dict())) == json.loads(told.stdout)
    assert "training" in found._repr_html_()


def test_calibration_shows_itself_in_a_notebook():
    from reranker_ft.evaluate.calibrate import fit_queries
    from tests.reranker_ft.evaluate.test_calibrate import drawn

    table = fit_queries([f"q{i}" for i in range(20)], *drawn(20))._repr_html_()
    assert "after (5 folds)" in table
