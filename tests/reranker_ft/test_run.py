"""The command line of training: who reports, and how it ends."""

import pytest

from reranker_ft.run import main
from tests.reranker_ft.conftest import toy_rows

NEEDED = ["--output_dir", "out", "--model_name_or_path", "m", "--train_data", "d.jsonl"]


def test_only_the_first_process_reports(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    assert main(["--no_such_flag"]) == 2
    assert capsys.readouterr().err == ""


def small(model, data, output, *more):
    return [
        *("--model_name_or_path", str(model), "--train_data", str(data), "--output_dir"),
        *(str(output), "--train_group_size", "4", "--max_len", "48", "--num_train_epochs", "1"),
        *("--report_to", "none", "--save_strategy", "no", "--disable_tqdm", "True"),
        *map(str, more),
    ]


@pytest.fixture
def data(write_jsonl):
    return write_jsonl(toy_rows(8))


def test_ctrl_c_is_one_line(model_folders, data, tmp_path, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("reranker_ft.train.trainer.RerankerTrainer.train", interrupted)
    assert main(small(model_folders("bert"), data, tmp_path / "out")) == 130
    assert capsys.readouterr().err == "reranker-ft: interrupted\n"
