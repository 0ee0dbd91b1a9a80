"""What training computes: the same whatever the batching, the processes and the interruptions."""

import json
import logging
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from reranker_ft.errors import ModelError
from reranker_ft.run import main
from reranker_ft.train.trainer import (
    COLLAPSED_LOGS,
    MOST_OVERFLOWS,
    BestCheckpointCallback,
    RerankerTrainer,
    has_unused_parameters,
    prepare_for_ddp,
)
from tests.reranker_ft.conftest import make_model, make_tokenizer, refusals, toy_rows

# Plain gradient descent: Adam divides by the size of the gradient, which makes rounding visible.
EXACT = ["--optim", "sgd", "--learning_rate", "0.1", "--lr_scheduler_type", "constant"]


def flags(model, data, output, *more):
    return [
        *("--model_name_or_path", str(model), "--train_data", str(data), "--output_dir"),
        *(str(output), "--train_group_size", "4", "--max_len", "48", "--report_to", "none"),
        *("--num_train_epochs", "1", "--save_strategy", "no", "--disable_tqdm", "True"),
        *("--micro_batch_tokens", "100", *map(str, more)),
    ]


def train(model, data, output, *more):
    """The weights after training."""
    assert main(flags(model, data, output, *more)) == 0
    return load_file(output / "model.safetensors")


def assert_equal_weights(first, second, *, atol=2e-6):
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], atol=atol, rtol=1e-5, msg=name)


def distance(first, second):
    return max((tensor - second[name]).abs().max().item() for name, tensor in first.items())


@pytest.fixture
def data(write_jsonl):
    return write_jsonl(toy_rows(11))


def test_accumulated_batches_equal_one_batch(model_folders, data, tmp_path):
    model = model_folders("bert")
    batch, steps = "--per_device_train_batch_size", "--gradient_accumulation_steps"
    whole = train(model, data, tmp_path / "8x1", *EXACT, batch, 8, steps, 1)
    for size in (1, 2):
        parts = train(model, data, tmp_path / f"{size}", *EXACT, batch, size, steps, 8 // size)
        # Eleven queries: the last step has three, in one batch or in parts.
        assert_equal_weights(whole, parts)
    assert distance(whole, load_file(model / "model.safetensors")) > 1e-3


def test_the_size_of_micro_batches_changes_nothing(model_folders, data, tmp_path):
    results = [
        train(model_folders("roberta"), data, tmp_path / name, *EXACT, "--micro_batch_tokens", size)
        for name, size in (("small", 1), ("large", 100_000))
    ]
    assert_equal_weights(*results)


def test_two_processes_equal_one_on_the_same_global_batch(model_folders, write_jsonl, tmp_path):
    # Nine queries in global batches of four: the last leaves one process without a query.
    data = write_jsonl(toy_rows(9))
    model = model_folders("bert")
    # One query to retain: a process has none to rank.
    retain = write_jsonl(toy_rows(1), "retain.jsonl")
    common = [*EXACT, "--in_batch_negatives", 3, "--eval_data", data, "--retain_data", retain]
    if torch.cuda.is_available():
        common += ["--use_cpu", True]  # elsewhere the CPU is taken without being told
    batch = "--per_device_train_batch_size"
    one = train(model, data, tmp_path / "one", *common, batch, 4)
    two = tmp_path / "two"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["--standalone", "-m", "reranker_ft.run"]
    command += flags(model, data, two, *common, batch, 2)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    root = Path(__file__).parents[3]
    done = subprocess.run(
        command, env=environment, cwd=root, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "find_unused_parameters" not in done.stderr
    assert_equal_weights(one, load_file(two / "model.safetensors"))
    histories = [json.loads((tmp_path / n / "history.json").read_text()) for n in ("one", "two")]
    for first, second in zip(*histories, strict=True):
        for name in ("loss", "eval_ndcg@10", "eval_ndcg@10_low", "eval_loss", "eval_retain_map"):
            assert first.get(name) == pytest.approx(second.get(name), abs=1e-4), name


@pytest.mark.parametrize("at", [2, 3, 4])
def test_resuming_equals_not_stopping(model_folders, data, tmp_path, at):
    # Three steps an epoch: resumed within the first, at its end, and within the second.
    model = model_folders("bert", dropout=0.1)
    plan = ["--num_train_epochs", 2, "--per_device_train_batch_size", 4, "--learning_rate", 1e-3]
    plan += ["--save_strategy", "steps", "--save_steps", 1]
    whole = train(model, data, tmp_path / "whole", *plan)
    resumed = tmp_path / "resumed"
    resumed.mkdir()
    shutil.copytree(tmp_path / "whole" / f"checkpoint-{at}", resumed / f"checkpoint-{at}")
    again = train(model, data, resumed, *plan, "--resume_from_checkpoint", "True")
    assert_equal_weights(whole, again, atol=0)
    history = json.loads((resumed / "history.json").read_text())
    assert history[-1]["step"] == 6


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-roberta"])
def test_every_parameter_moves(model_folders, data, tmp_path, kind):
    before = load_file(model_folders(kind) / "model.safetensors")
    # A softmax over the group does not see the last bias, which moves all scores alike.
    plan = ["--learning_rate", 1e-2, "--loss", "bce"]
    after = train(model_folders(kind), data, tmp_path / "out", *plan)
    still = [name for name, tensor in after.items() if torch.equal(tensor, before[name])]
    assert not still


@pytest.mark.parametrize("loss", ["softmax", "bce"])
def test_training_learns_to_rank(model_folders, write_jsonl, tmp_path, loss):
    data = write_jsonl(toy_rows(16))
    plan = ["--num_train_epochs", 8, "--learning_rate", 3e-3, "--loss", loss, "--logging_steps", 2]
    train(model_folders("bert"), data, tmp_path / "out", *plan, "--eval_data", data)
    history = json.loads((tmp_path / "out" / "history.json").read_text())
    ranked = [entry["eval_ndcg@10"] for entry in history if "eval_ndcg@10" in entry]
    assert ranked[-1] > ranked[0] + 0.2
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert losses[-1] < losses[0]


def test_distillation_pulls_towards_the_teacher(model_folders, write_jsonl, tmp_path):
    rows = toy_rows(8, negatives=3)
    for row in rows:
        # A teacher that disagrees with the labels.
        row |= {"pos_scores": [-3.0], "neg_scores": [3.0, 0.0, 0.0]}
    data = write_jsonl(rows)
    plan = ["--num_train_epochs", 6, "--learning_rate", 3e-3, "--eval_data", data]
    plan += ["--distillation_weight", 20, "--distillation_temperature", 2]

    def final_ndcg(name, *more):
        train(model_folders("bert"), data, tmp_path / name, *plan, *more)
        history = json.loads((tmp_path / name / "history.json").read_text())
        return [entry["eval_ndcg@10"] for entry in history if "eval_ndcg@10" in entry][-1]

    assert final_ndcg("labels") > 0.9 > 0.6 > final_ndcg("teacher", "--knowledge_distillation")


def test_a_collapsed_model_is_reported_once(tmp_path, data, caplog):
    model = make_model("bert")
    with torch.no_grad():
        model.classifier.weight.zero_()
    folder = tmp_path / "flat"
    model.save_pretrained(folder)
    make_tokenizer("bert").save_pretrained(folder)
    plan = ["--learning_rate", 0, "--logging_steps", 1, "--num_train_epochs", 4]
    with caplog.at_level(logging.WARNING):
        train(folder, data, tmp_path / "out", *plan)
    messages = [r.getMessage() for r in caplog.records if "collapsed" in r.getMessage()]
    assert len(messages) == 1
    assert f"collapsed at step {COLLAPSED_LOGS}" in messages[0]
    assert "ln(4 passages) is 1.386" in messages[0]


def test_a_healthy_model_is_not_called_collapsed(model_folders, data, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        train(model_folders("bert"), data, tmp_path / "out", "--logging_steps", 1)
    assert "collapsed" not in caplog.text


def test_a_diverged_run_stops_in_one_line_and_keeps_its_checkpoints(
    model_folders, data, tmp_path, capsys, monkeypatch
):
    losses = iter([1.0, 1.0, float("nan")])
    compute = RerankerTrainer.compute_loss
    monkeypatch.setattr(
        RerankerTrainer, "compute_loss", lambda *a, **b: compute(*a, **b) * next(losses)
    )
    output = tmp_path / "out"
    saving = ["--save_strategy", "steps", "--save_steps", 1, "--per_device_train_batch_size", 2]
    assert main(flags(model_folders("bert"), data, output, *saving, "--logging_steps", 1)) == 1
    (line,) = refusals(capsys)
    assert "the loss is not a finite number at step 2: training has diverged" in line
    assert not (output / "model.safetensors").exists()
    weights = [load_file(output / f"checkpoint-{n}" / "model.safetensors") for n in (1, 2)]
    assert all(tensor.isfinite().all() for each in weights for tensor in each.values())
    assert not (output / "checkpoint-3").exists()


def test_weights_that_are_not_finite_are_not_saved(
    model_folders, data, tmp_path, capsys, monkeypatch
):
    compute = RerankerTrainer.compute_loss

    def spoil(trainer, model, *others, **more):
        loss = compute(trainer, model, *others, **more)
        model.classifier.weight.data[0, 0] = torch.inf
        return loss

    monkeypatch.setattr(RerankerTrainer, "compute_loss", spoil)
    saving = ["--save_strategy", "steps", "--save_steps", 1, "--max_steps", 1]
    output = tmp_path / "out"
    assert main(flags(model_folders("bert"), data, output, *saving)) == 1
    assert " is not finite at step 1: training has diverged" in capsys.readouterr().err
    assert not list(output.rglob("model.safetensors"))


def test_batches_that_a_scaler_leaves_out_do_not_stop_training():
    overflowed = iter([True] * MOST_OVERFLOWS + [False] + [True] * (MOST_OVERFLOWS + 1))
    trainer = SimpleNamespace(
        args=SimpleNamespace(world_size=1),
        accelerator=SimpleNamespace(scaler=object()),
        state=SimpleNamespace(global_step=7),
        _overflows=0,
    )
    trainer._diverged = partial(RerankerTrainer._diverged, trainer)
    with pytest.raises(ModelError, match="at step 7"):
        for each in overflowed:
            loss = torch.tensor(torch.inf if each else 1.0)
            RerankerTrainer._require_finite(trainer, loss)
    assert next(overflowed, None) is None


def test_ddp_sends_no_buffers_unless_told_to(tmp_path):
    inputs = {"input_ids": torch.tensor([[2, 5, 3, 6, 3]])}
    store = f"file://{tmp_path / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        for told in (None, True):
            model = make_model("bert")
            args = SimpleNamespace(ddp_find_unused_parameters=None, ddp_broadcast_buffers=told)
            prepare_for_ddp(model, args, inputs)
            sent = torch.nn.parallel.DistributedDataParallel(model).modules_buffers
            assert bool(sent) is bool(told)
            assert args.ddp_find_unused_parameters is False
    finally:
        torch.distributed.destroy_process_group()


def test_parameters_that_have_no_part_in_the_scores_are_found():
    model = make_model("bert").train()
    inputs = {"input_ids": torch.tensor([[2, 5, 3, 6, 3]])}
    assert not has_unused_parameters(model, inputs)
    model.spare = torch.nn.Linear(2, 2)
    assert has_unused_parameters(model, inputs)
    model.spare.requires_grad_(False)
    assert not has_unused_parameters(model, inputs)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_best_checkpoint_is_known_where_transformers_forgets_it(tmp_path):
    callback = BestCheckpointCallback()
    best, steps = (
        SimpleNamespace(output_dir=tmp_path, save_strategy=strategy)
        for strategy in ("best", "steps")
    )
    state = SimpleNamespace(global_step=3, best_model_checkpoint=None)
    callback.on_train_begin(best, state, None)
    assert state.best_model_checkpoint is None
    (tmp_path / "checkpoint-3").mkdir()
    callback.on_train_begin(steps, state, None)
    assert state.best_model_checkpoint is None
    callback.on_train_begin(best, state, None)
    assert state.best_model_checkpoint == str(tmp_path / "checkpoint-3")
    state.global_step = 5
    callback.on_save(steps, state, None)
    assert state.best_model_checkpoint == str(tmp_path / "checkpoint-3")
    callback.on_save(best, state, None)
    assert state.best_model_checkpoint == str(tmp_path / "checkpoint-5")
