"""A run from the command line to the output folder."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from reranker_ft.model.pairs import PairEncoder
from reranker_ft.model.scoring import score_encodings
from reranker_ft.run import main
from reranker_ft.train import hardware
from tests.reranker_ft.conftest import make_model, make_tokenizer, refusals, small, toy_rows

ROOT = Path(__file__).parents[3]
PAIRS = [("what is red", "the red river"), ("what is red", "blue"), ("who is king", "the king ! ")]

# The command of the guide, as it stands there, with what it leaves open filled in.
GUIDE = """
    --output_dir out --model_name_or_path {model} --train_data ./toy_finetune_data.jsonl
    --learning_rate 6e-5 --fp16 --num_train_epochs 5 --per_device_train_batch_size 1
    --gradient_accumulation_steps 4 --dataloader_drop_last True --train_group_size 16 --max_len 512
    --weight_decay 0.01 --logging_steps 10
"""


@pytest.fixture
def data(write_jsonl):
    return write_jsonl(toy_rows(8))


def raw_scores(folder):
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    encoder = PairEncoder(AutoTokenizer.from_pretrained(folder))
    return score_encodings(model, encoder(PAIRS))


def test_the_guide_s_command_runs_as_it_stands(model_folders, tmp_path, monkeypatch, caplog):
    (tmp_path / "toy_finetune_data.jsonl").symlink_to(ROOT / "examples/toy_finetune_data.jsonl")
    monkeypatch.setattr(hardware, "cpu_computes_in_bf16", lambda: False)
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(GUIDE.format(model=model_folders("xlm-roberta")))) == 0
    # 17 lines, batches of 1 accumulated by 4, 5 epochs.
    state = json.loads(Path("out/history.json").read_text())[-1]
    assert (state["step"], state["epoch"]) == (25, 5)
    assert Path("out/history.png").stat().st_size > 1000
    assert raw_scores("out").isfinite().all()
    if not torch.cuda.is_available():
        assert caplog.text.count("--fp16 needs a GPU") == 1
    assert caplog.text.count("negatives are repeated") == 1
    assert "the model has 64 positions: cut at 64" in caplog.text


def test_the_output_scores_alike_in_sentence_transformers(tmp_path, data):
    from sentence_transformers import CrossEncoder

    encoder = tmp_path / "encoder"
    make_model("bert").bert.save_pretrained(encoder)
    make_tokenizer("bert").save_pretrained(encoder)
    output = tmp_path / "out"
    assert main(small(encoder, data, output, "--learning_rate", 1e-2)) == 0
    expected = raw_scores(output)
    model = CrossEncoder(str(output), device="cpu")
    torch.testing.assert_close(torch.tensor(model.predict(PAIRS)), expected, atol=1e-5, rtol=1e-5)
    raw = model.predict(PAIRS, activation_fn=torch.nn.Identity())
    torch.testing.assert_close(torch.tensor(raw), expected, atol=1e-5, rtol=1e-5)


def test_the_best_model_is_loaded_at_the_end(model_folders, data, write_jsonl, tmp_path):
    output = tmp_path / "out"
    retain = write_jsonl(toy_rows(5), "retain.jsonl")
    more = [
        "--eval_data",
        data,
        "--retain_data",
        retain,
        "--eval_steps",
        1,
        "--max_eval_queries",
        6,
    ]
    more += ["--load_best_model_at_end", "--early_stopping_patience", 2, "--learning_rate", 5e-2]
    more += ["--num_train_epochs", 9, "--per_device_train_batch_size", 4, "--save_total_limit", 1]
    arguments = small(model_folders("bert"), data, output, *more)
    at = arguments.index("--save_strategy")
    del arguments[at : at + 2]
    assert main(arguments) == 0
    history = json.loads((output / "history.json").read_text())
    measured = [entry for entry in history if "eval_ndcg@10" in entry]
    assert measured[0]["step"] == 0
    assert all("eval_retain_ndcg@10_low" in entry for entry in measured)
    values = [entry["eval_ndcg@10"] for entry in measured]
    during, final = values[1:-1], values[-1]
    # The last evaluation is of the model that was loaded: the best of those during training.
    assert final == pytest.approx(max(during))
    # Training went on for two evaluations after the best, and no longer.
    assert len(during) == during.index(max(during)) + 3 or len(during) == 18


def test_a_run_on_other_data_does_not_touch_what_is_there(model_folders, data, tmp_path, capsys):
    output = tmp_path / "out"
    output.mkdir()
    (output / "notes.txt").write_text("mine")
    (output / "checkpoint-7").mkdir()
    (output / "model-00001-of-00002.safetensors").write_text("old")
    arguments = small(model_folders("bert"), data, output)
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "is not empty" in line
    assert "--overwrite_output_dir" in line
    assert (output / "model-00001-of-00002.safetensors").exists()
    assert main([*arguments, "--overwrite_output_dir"]) == 0
    assert (output / "notes.txt").read_text() == "mine"
    assert not (output / "checkpoint-7").exists()
    assert not (output / "model-00001-of-00002.safetensors").exists()


def test_what_is_refused_leaves_the_old_output_alone(model_folders, write_jsonl, tmp_path, capsys):
    output = tmp_path / "out"
    output.mkdir()
    (output / "model.safetensors").write_text("old")
    data = write_jsonl([{"query": "q", "pos": "p"}])
    assert main(small(model_folders("bert"), data, output, "--overwrite_output_dir")) == 1
    assert f"reranker-ft: {data}:1: `pos` is a string" in capsys.readouterr().err
    too_large = ["--per_device_train_batch_size", 9, "--dataloader_drop_last"]
    arguments = small(model_folders("bert"), write_jsonl(toy_rows(8)), output, *too_large)
    assert main([*arguments, "--overwrite_output_dir"]) == 2
    assert (output / "model.safetensors").read_text() == "old"


@pytest.mark.parametrize(
    ("more", "code", "found"),
    [
        (["--model_name_or_path", "/no/such/model"], 1, "does not load"),
        (["--train_data", "/no/such/file"], 2, "does not exist"),
        (["--resume_from_checkpoint", "True"], 2, "holds no checkpoint"),
        (["--resume_from_checkpoint", "/no/such"], 2, "is not a checkpoint"),
        (["--in_batch_negatives", "2", "--per_device_train_batch_size", "1"], 2, "holds 1 query"),
        (["--knowledge_distillation"], 1, "`pos_scores` is missing"),
        (["--query_instruction_format", "{}"], 2, "has two places"),
        (["--use_lora", "--target_modules", "none_such"], 2, "no adapters fit ['none_such']"),
        (["--report_to", "none_such"], 2, "none_such is not supported"),
        (["--output_dir", "/proc/none_such"], 1, "/proc/none_such"),
        (["--per_device_train_batch_size", "9", "--dataloader_drop_last"], 2, "do not fill one"),
    ],
)
def test_what_cannot_be_trained_is_one_line(
    model_folders, data, tmp_path, capsys, more, code, found
):
    assert main([*small(model_folders("bert"), data, tmp_path / "out"), *more]) == code
    lines = refusals(capsys)
    assert found in lines[0] or "problems in the data" in lines[0]
    assert len(lines) == 1
    assert not (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_lora_trains_adapters_and_head_and_merges(model_folders, data, tmp_path, kind):
    from peft import PeftModel

    lora = ["--use_lora", "--lora_rank", 2, "--learning_rate", 5e-2]
    model = model_folders(kind)
    assert main(small(model, data, tmp_path / "adapter", *lora)) == 0
    assert main(small(model, data, tmp_path / "whole", *lora, "--save_merged_lora_model")) == 0
    adapter = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert any("lora_B" in name and tensor.any() for name, tensor in adapter.items())
    # Not the last bias: it moves all scores of a group alike, so that its gradient is zero but for
    # rounding.
    head = [name for name in adapter if "classifier" in name and name.endswith("weight")]
    before = load_file(model / "model.safetensors")
    assert head
    for name in head:
        original = before[name.removeprefix("base_model.model.")]
        assert not torch.equal(adapter[name], original)
    base = AutoModelForSequenceClassification.from_pretrained(model)
    merged = PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload().eval()
    expected = score_encodings(merged, PairEncoder(make_tokenizer(kind))(PAIRS))
    torch.testing.assert_close(raw_scores(tmp_path / "whole"), expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(raw_scores(model), expected)


@pytest.mark.parametrize("own", [True, False])
def test_the_tokenizer_is_saved_as_it_came(model_folders, data, tmp_path, own):
    model = tmp_path / "model"
    shutil.copytree(model_folders("bert"), model)
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    backend = make_tokenizer("bert").backend_tokenizer
    if own:
        backend.enable_truncation(40)
        backend.enable_padding(length=30, pad_token="[PAD]")
    backend.save(str(model / "tokenizer.json"))
    saving = ["--save_strategy", "steps", "--save_steps", 1, "--eval_data", data]
    assert main(small(model, data, tmp_path / "out", *saving)) == 0
    came = json.loads(backend.to_str())
    for folder in (tmp_path / "out", tmp_path / "out" / "checkpoint-1"):
        saved = json.loads((folder / "tokenizer.json").read_text())
        assert bool(saved["truncation"]) is bool(saved["padding"]) is own
        assert [saved[name] for name in tokenizer] == [came[name] for name in tokenizer]


def test_padding_to_a_multiple_stays_within_the_positions(
    model_folders, data, tmp_path, capsys, caplog
):
    arguments = small(model_folders("bert"), data, tmp_path / "out", "--max_len", 64)
    assert main([*arguments, "--pad_to_multiple_of", "24"]) == 0
    assert "multiples of 24 tokens and the model has 64 positions: cut at 48" in caplog.text
    assert main([*arguments, "--overwrite_output_dir", "--pad_to_multiple_of", "65"]) == 2
    assert "reranker-ft: pad_to_multiple_of is 65" in capsys.readouterr().err


def test_workers_warn_once_of_too_few_negatives(model_folders, write_jsonl, tmp_path):
    data = write_jsonl(toy_rows(8, negatives=2))
    more = ["--dataloader_num_workers", 2, "--num_train_epochs", 2]
    command = [sys.executable, "-m", "reranker_ft.run"]
    command += small(model_folders("bert"), data, tmp_path / "out", *more)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("negatives are repeated") == 1


def test_workers_do_not_change_the_result(model_folders, data, tmp_path):
    weights = []
    for workers in (0, 2):
        output = tmp_path / f"{workers}"
        arguments = small(model_folders("bert"), data, output, "--dataloader_num_workers", workers)
        assert main(arguments) == 0
        weights.append(load_file(output / "model.safetensors"))
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name])


def test_a_run_writes_no_bars_where_stderr_is_no_terminal(model_folders, data, tmp_path, capfd):
    arguments = small(model_folders("bert"), data, tmp_path / "out", "--eval_data", data)
    at = arguments.index("--disable_tqdm")
    del arguments[at : at + 2]
    assert main(arguments) == 0
    assert "%|" not in capfd.readouterr().err
