"""What a training run says while it runs and when it is done."""

import logging

import pytest

from reranker_ft.run import main
from reranker_ft.train.telling import evaluation_line
from tests.reranker_ft.conftest import make_model, make_tokenizer, small, toy_rows


def test_a_line_says_what_has_changed():
    first = {"eval_ndcg@10": 0.75, "eval_retain_ndcg@10": 0.71, "eval_loss": 1.0}
    assert evaluation_line(0, 200, first, {}) == (
        "before training: target NDCG@10 0.750, general NDCG@10 0.710"
    )
    later = {"eval_ndcg@10": 0.81, "eval_retain_ndcg@10": 0.7}
    assert evaluation_line(1200, 2000, later, first) == (
        "step 1,200 of 2,000: target NDCG@10 0.810 (+0.060), general NDCG@10 0.700 (-0.010)"
    )


@pytest.fixture
def data(write_jsonl):
    return write_jsonl(toy_rows(8))


def test_a_run_tells_of_evaluations_of_the_output_and_of_what_is_next(
    model_folders, data, write_jsonl, tmp_path, caplog, capsys
):
    dev, general = (write_jsonl(toy_rows(5), name) for name in ("dev.jsonl", "general.jsonl"))
    base, output = model_folders("bert"), tmp_path / "out"
    caplog.set_level(logging.INFO, logger="reranker_ft")
    more = ["--eval_data", dev, "--retain_data", general]
    assert main(small(base, data, output, *more)) == 0
    told = [
        record.getMessage() for record in caplog.records if record.name.startswith("reranker_ft")
    ]
    assert told[0].startswith("before training: target NDCG@10 0.")
    assert told[1].startswith("step 1 of 1: target NDCG@10 0.")
    assert told[-2] == f"saved: {output}"
    assert told[-1] == (
        f"next: cocktail search {base} {output} --data {dev} --retain {general} "
        f"--output {output}-mixed"
    )
    out, err = capsys.readouterr()
    assert "{'" not in out + err  # no dictionaries of numbers


def test_what_is_next_fits_what_was_given(model_folders, data, write_jsonl, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="reranker_ft")
    fresh = tmp_path / "encoder"
    make_model("bert").bert.save_pretrained(fresh)
    make_tokenizer("bert").save_pretrained(fresh)
    dev = write_jsonl(toy_rows(5), "dev.jsonl")
    output = tmp_path / "out"
    assert main(small(fresh, data, output, "--eval_data", dev)) == 0
    assert caplog.messages[-1] == f"next: reranker-ft evaluate {output} --data {dev}"
    base, mixed = model_folders("bert"), tmp_path / "other"
    assert main(small(base, data, mixed)) == 0
    told = f"next: cocktail mix {base} {mixed} --weights 0.5 0.5 --output {mixed}-mixed"
    assert caplog.messages[-1] == told
