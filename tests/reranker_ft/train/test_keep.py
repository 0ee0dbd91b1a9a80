"""A run that keeps general ability: what it holds out, searches with, and leaves behind."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from reranker_ft.data.examples import ExampleFiles
from reranker_ft.errors import ArgumentError, DataError
from reranker_ft.run import main
from reranker_ft.train.keep import FEWEST_HELD_OUT, hold_out, read_kept, require_head
from tests.mteb_tasks import local_task
from tests.reranker_ft.conftest import toy_rows

ROOT = Path(__file__).parents[3]


def many_rows(count, **options):
    """Rows whose queries differ."""
    rows = toy_rows(count, **options)
    return [{**row, "query": f"{row['query']} {i}"} for i, row in enumerate(rows)]


def flags(model, data, output, *more):
    return [
        *("--model_name_or_path", str(model), "--train_data", str(data), "--output_dir"),
        *(str(output), "--train_group_size", "4", "--num_train_epochs", "2", "--use_cpu", "True"),
        *("--report_to", "none", "--save_strategy", "no", "--disable_tqdm", "True"),
        *("--per_device_train_batch_size", "8", "--learning_rate", "1e-3", *map(str, more)),
    ]


@pytest.fixture
def searches_here(monkeypatch):
    """The search is a process of its own, which imports what is tested."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def test_a_fifth_of_the_queries_is_held_out_with_all_their_lines(write_jsonl):
    rows = many_rows(60)
    rows += [{**row, "pos": [f"{row['pos'][0]} again"]} for row in rows[:30]]
    examples = ExampleFiles([write_jsonl(rows)])
    training, held_out = hold_out(examples, 0)
    assert len(training) + len(held_out) == len(rows)
    queries, others = ({each.query for each in part} for part in (training, held_out))
    assert not queries & others
    assert len(others) == round(0.2 * len({row["query"] for row in rows}))
    assert held_out[0] in held_out[:3]
    again = hold_out(examples, 0)[1]
    assert list(again) == list(held_out)
    assert list(hold_out(examples, 1)[1]) != list(held_out)


def test_too_few_queries_are_refused(write_jsonl):
    with pytest.raises(DataError, match=f"{FEWEST_HELD_OUT} at least"):
        hold_out(ExampleFiles([write_jsonl(toy_rows(20))]), 0)


def test_what_cannot_be_kept_is_refused_before_training(write_jsonl, tmp_path):
    data = str(write_jsonl(toy_rows(3)))
    with pytest.raises(ArgumentError, match="both given"):
        read_kept(data, data, 0)
    with pytest.raises(ArgumentError, match="is no file"):
        read_kept(None, str(tmp_path / "nowhere"), 0)
    with pytest.raises(DataError, match="neg"):
        read_kept(str(write_jsonl([{"query": "a", "pos": ["b"]}], "bad.jsonl")), None, 0)
    with pytest.raises(ArgumentError, match="no reranking head"):
        require_head("encoder", ["BertModel"])


def test_the_chosen_model_stands_in_the_output(model_folders, write_jsonl, tmp_path, searches_here):
    data, general = write_jsonl(many_rows(50)), write_jsonl(toy_rows(12, negatives=4), "g.jsonl")
    output = tmp_path / "run"
    assert main(flags(model_folders(), data, output, "--keep", general)) == 0
    found = json.loads((output / "report" / "search.json").read_text())
    assert found["models"] == [str(model_folders()), str(output / "fine-tuned")]
    base, tuned, chosen = (
        load_file(folder / "model.safetensors")
        for folder in (model_folders(), output / "fine-tuned", output)
    )
    first, second = found["weights"]
    for name, tensor in chosen.items():
        expected = first * base[name] + second * tuned[name]
        assert (tensor - expected).abs().max() < 1e-5
    assert any((base[name] != tuned[name]).any() for name in base)
    assert len((output / "held-out.jsonl").read_text().splitlines()) == len(found["examples"]) == 10
    assert len((output / "kept.jsonl").read_text().splitlines()) == 12
    assert not (output / ".chosen").exists()


def test_a_task_of_mteb_can_be_kept(
    model_folders, write_jsonl, tmp_path, searches_here, monkeypatch, caplog
):
    mteb = pytest.importorskip("mteb")
    tasks = {"LocalTask": local_task(write_jsonl(toy_rows(12, negatives=4), "task.jsonl"))}
    monkeypatch.setattr(mteb, "get_task", lambda name: tasks[name])
    caplog.set_level(logging.INFO, logger="reranker_ft")
    output = tmp_path / "run"
    more = ["--keep", "LocalTask"]
    assert main(flags(model_folders(), write_jsonl(many_rows(50)), output, *more)) == 0
    kept = [json.loads(line) for line in (output / "kept.jsonl").read_text().splitlines()]
    assert len(kept) == 12
    assert all(len(row["pos"]) == 2 and 1 <= len(row["neg"]) <= 7 for row in kept)
    assert json.loads((output / "report" / "search.json").read_text())["measures"]["general"]
    assert caplog.messages[-1].endswith("held-out.jsonl --benchmark LocalTask")
    with pytest.raises(ArgumentError, match="keep Nothing is no file, and mteb has no"):
        read_kept("Nothing", None, 0)


def test_a_search_that_fails_leaves_the_fine_tune(
    model_folders, write_jsonl, tmp_path, searches_here, capfd
):
    data, text = write_jsonl(many_rows(50)), tmp_path / "general.txt"
    text.write_text("one passage is too few\n")
    output = tmp_path / "run"
    assert main(flags(model_folders(), data, output, "--keep_text", text)) == 1
    told = capfd.readouterr().err
    assert "give 3 or more" in told and f"safe in {output / 'fine-tuned'}" in told
    assert (output / "fine-tuned" / "model.safetensors").is_file()
    assert not (output / "model.safetensors").exists()


def test_two_processes_choose_once(model_folders, write_jsonl, tmp_path, searches_here):
    data, text = write_jsonl(many_rows(50)), tmp_path / "general.jsonl"
    rows = toy_rows(12)
    lines = [{"query": row["query"], "text": row["pos"][0]} for row in rows]
    text.write_text("".join(json.dumps(line) + "\n" for line in lines))
    output = tmp_path / "run"
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"),
        *("-m", "reranker_ft.run", *flags(model_folders(), data, output, "--keep_text", text)),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert ran.returncode == 0, ran.stderr[-2000:]
    found = json.loads((output / "report" / "search.json").read_text())
    assert found["measures"]["general"] == "agreement"
    assert ran.stdout.count("forward equivalents") == 1
    assert (output / "model.safetensors").is_file()
