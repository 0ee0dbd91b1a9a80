"""Arguments of training: their defaults, and values that make no sense."""

import dataclasses
import shlex

import pytest
import torch

from reranker_ft.errors import ArgumentError
from reranker_ft.run import main
from reranker_ft.train import hardware
from reranker_ft.train.config import DataArguments, ModelArguments, RerankerTrainingArguments
from reranker_ft.train.flags import parse

NEEDED = ["--output_dir", "out", "--model_name_or_path", "m", "--train_data", "d.jsonl"]


@pytest.mark.parametrize(
    ("flags", "length"),
    [
        ([], 512),
        (["--max_len", "100"], 100),
        (["--query_max_len", "32", "--passage_max_len", "128"], 160),
        (["--query_max_len", "32", "--passage_max_len", "128", "--max_len", "150"], 150),
        (["--query_max_len", "32"], 512),
    ],
)
def test_the_length_of_a_pair(flags, length):
    assert parse([*NEEDED, *flags])[1].pair_length == length


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize("flag", ["fp16", "bf16"])
def test_half_precision_without_a_gpu_becomes_fp32_with_one_note(monkeypatch, flag):
    monkeypatch.setattr(hardware, "cpu_computes_in_bf16", lambda: False)
    training_args = parse([*NEEDED, f"--{flag}"])[2]
    assert getattr(training_args, flag) is False
    (note,) = training_args.notes
    assert note.startswith(f"--{flag} needs a GPU")
    assert note.endswith("training in fp32.")
    assert not parse(NEEDED)[2].notes


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        (["--no_such_flag", "3"], "no such flag: --no_such_flag"),
        (["--learning_rat", "3"], "did you mean --learning_rate"),
        (["--learning-rat=3"], "did you mean --learning_rate"),
        (["--train_group_size", "many"], "invalid int value: 'many'"),
        (["--train_group_size", "0"], "train_group_size is 0"),
        (["--train_group_size", "1"], "a positive alone teaches nothing"),
        (["--in_batch_negatives", "-1"], "in_batch_negatives is -1"),
        (["--max_len", "0"], "max_length is 0"),
        (["--loss", "hinge"], "loss is 'hinge'"),
        (["--distillation_temperature", "0"], "distillation_temperature is 0"),
        (["--warmup_ratio", "2"], "warmup_ratio is 2"),
        (["--label_smoothing_factor", "0.1"], "label_smoothing_factor is 0.1"),
        (["--model_type", "painter"], "model_type is 'painter'"),
        (["--load_best_model_at_end"], "load_best_model_at_end is given without eval_data"),
        (["--early_stopping_patience", "2"], "early_stopping_patience is given without eval_data"),
        (
            ["--eval_data", "e", "--load_best_model_at_end", "--metric_for_best_model", "f1"],
            "is 'f1'",
        ),
        (
            shlex.split(
                "--eval_data e --load_best_model_at_end --metric_for_best_model retain_map"
            ),
            "metric_for_best_model is 'retain_map'",
        ),
        (["--eval_data", "e", "--metric_for_best_model", "f1"], "is 'f1'"),
        (["--optim", "no_such"], "no_such"),
        (["--per_device_train_batch_size", "0"], "per_device_train_batch_size is 0"),
        (["--gradient_accumulation_steps", "0"], "gradient_accumulation_steps is 0"),
        (["--dataloader_num_workers", "-1"], "dataloader_num_workers is -1"),
        (["--learning_rate", "nan"], "learning_rate is nan"),
        (["--adam_beta1", "1"], "adam_beta1 is 1.0"),
        (["--seed", "-1"], "seed is -1"),
        (["--data_seed", "4294967296"], "data_seed is 4294967296"),
        (["--num_train_epochs", "0"], "nothing would be trained"),
        (["--eval_data", "e", "--max_eval_queries", "0"], "max_eval_queries is 0"),
        (["--lora_rank", "0"], "lora_rank is 0"),
        (["--lora_alpha", "nan"], "lora_alpha is nan"),
        (["--lora_dropout", "1"], "lora_dropout is 1.0"),
        (["--adam_epsilon", "-1"], "adam_epsilon is -1.0"),
        (["--max_grad_norm", "nan"], "max_grad_norm is nan"),
        (["--num_train_epochs", "inf"], "num_train_epochs is inf"),
        (["--pad_to_multiple_of", "0"], "pad_to_multiple_of is 0"),
        (["--fp16", "--bf16", "--logging_steps", "0"], "requires non-zero --logging_steps"),
    ],
)
def test_what_cannot_be_meant_is_one_line_and_exit_code_2(flags, found, capsys):
    assert main([*NEEDED, *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("reranker-ft: ")
    assert found in line


def test_evaluation_happens_when_data_are_given():
    training_args = parse([*NEEDED, "--eval_data", "e"])[2]
    assert (training_args.eval_strategy, training_args.eval_on_start) == ("epoch", True)
    training_args = parse([*NEEDED, "--retain_data", "e", "--eval_steps", "5"])[2]
    assert (training_args.eval_strategy, training_args.eval_steps) == ("steps", 5)
    flags = ["--eval_data", "e", "--eval_steps", "5", "--load_best_model_at_end"]
    training_args = parse([*NEEDED, *flags])[2]
    assert training_args.metric_for_best_model == "ndcg@10"
    assert training_args.greater_is_better is True
    assert training_args.save_strategy == "best"


def test_every_flag_of_ours_is_documented():
    inherited = {field.name for field in dataclasses.fields(RerankerTrainingArguments.__bases__[0])}
    for arguments in (ModelArguments, DataArguments, RerankerTrainingArguments):
        for field in dataclasses.fields(arguments):
            if field.name not in inherited:
                assert field.metadata["help"].endswith("."), field.name


def test_a_bad_instruction_format_is_refused():
    with pytest.raises(ArgumentError, match=r"query_instruction_format is '\{\}'"):
        _ = parse([*NEEDED, "--query_instruction_format", "{}"])[1].instructions


def test_data_seed_seeds_the_draws_even_if_it_is_0():
    assert parse([*NEEDED, "--seed", "7"])[2].drawing_seed == 7
    assert parse([*NEEDED, "--seed", "7", "--data_seed", "0"])[2].drawing_seed == 0


def test_bars_are_shown_on_a_terminal_only(monkeypatch):
    assert parse(NEEDED)[2].disable_tqdm is True
    assert parse([*NEEDED, "--disable_tqdm", "False"])[2].disable_tqdm is False
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert parse(NEEDED)[2].disable_tqdm is False


def test_processes_that_would_not_share_the_work_are_refused(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(RerankerTrainingArguments, "world_size", 1)
    monkeypatch.setattr(RerankerTrainingArguments, "_setup_devices", torch.device("mps"))
    with pytest.raises(ArgumentError, match="2 processes were started and 1 would train together"):
        parse(NEEDED)
