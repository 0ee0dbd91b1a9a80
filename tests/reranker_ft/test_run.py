"""The command line of training: who reports, and how it ends."""

import pytest

from reranker_ft.run import main
from tests.reranker_ft.conftest import refusals, small, toy_rows

NEEDED = ["--output_dir", "out", "--model_name_or_path", "m", "--train_data", "d.jsonl"]


def test_only_the_first_process_reports(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    assert main(["--no_such_flag"]) == 2
    assert capsys.readouterr().err == ""


@pytest.fixture
def data(write_jsonl):
    return write_jsonl(toy_rows(8))


def test_ctrl_c_is_one_line(model_folders, data, tmp_path, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("reranker_ft.train.trainer.RerankerTrainer.train", interrupted)
    assert main(small(model_folders("bert"), data, tmp_path / "out")) == 130
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("reranker-ft: interrupted - no checkpoint was saved - ")


def test_ctrl_c_names_the_way_on_where_there_is_a_checkpoint(
    model_folders, data, tmp_path, capsys, monkeypatch
):
    def interrupted(*_, **__):
        (tmp_path / "out" / "checkpoint-3").mkdir(parents=True)
        raise KeyboardInterrupt

    monkeypatch.setattr("reranker_ft.train.trainer.RerankerTrainer.train", interrupted)
    assert main(small(model_folders("bert"), data, tmp_path / "out")) == 130
    (line,) = refusals(capsys)
    assert line.startswith("reranker-ft: interrupted - ")
    assert "--resume_from_checkpoint True" in line


def test_what_the_system_refuses_is_one_line(model_folders, data, tmp_path, capsys, monkeypatch):
    def refused(*_, **__):
        raise PermissionError(13, "Permission denied", str(tmp_path / "out"))

    monkeypatch.setattr("reranker_ft.train.trainer.RerankerTrainer.train", refused)
    assert main(small(model_folders("bert"), data, tmp_path / "out")) == 1
    (line,) = refusals(capsys)
    assert line.startswith(f"reranker-ft: {tmp_path / 'out'} cannot be used (Permission denied)")
