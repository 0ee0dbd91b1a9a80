"""Flags of training: the familiar ones, the old ones, and those that do not exist."""

import shlex

import pytest

from reranker_ft.errors import ArgumentError
from reranker_ft.run import main
from reranker_ft.train.flags import parse

NEEDED = ["--output_dir", "out", "--model_name_or_path", "m", "--train_data", "d.jsonl"]


# The flags of FlagEmbedding 1.4.2's reranker fine-tuning, with a value each.
FLAG_EMBEDDING_FLAGS = """
    --config_name c --tokenizer_name t --cache_dir h --trust_remote_code True --model_type encoder
    --use_fast_tokenizer True --token s --cache_path p --train_group_size 4 --query_max_len 20
    --passage_max_len 40 --max_len 50 --pad_to_multiple_of 8 --max_example_num_per_dataset 7
    --query_instruction_for_rerank q --query_instruction_format {}{} --knowledge_distillation True
    --passage_instruction_for_rerank p --passage_instruction_format {}{} --shuffle_ratio 0.1
    --sep_token s --sub_batch_size 2 --warmup_ratio 0.1 --overwrite_output_dir
    --gradient_checkpointing --dataloader_drop_last True --save_steps 1000
"""


def test_the_flags_of_flag_embedding_are_read():
    model_args, data_args, training_args = parse([*NEEDED, *shlex.split(FLAG_EMBEDDING_FLAGS)])
    assert (model_args.tokenizer_name, model_args.cache_dir) == ("t", "h")
    assert model_args.trust_remote_code is True
    assert (data_args.train_group_size, data_args.max_length) == (4, 50)
    assert data_args.knowledge_distillation is True
    assert training_args.overwrite_output_dir is True
    assert training_args.dataloader_drop_last is True
    assert training_args.get_warmup_steps(200) == 20


def test_several_files_and_old_names():
    _, data_args, training_args = parse(
        [*NEEDED[:-1], "a.jsonl", "b", "--evaluation_strategy", "no", "--no_cuda"]
    )
    assert data_args.train_data == ["a.jsonl", "b"]
    assert training_args.eval_strategy == "no"
    assert parse([*NEEDED, "--evaluation_strategy=no"])[2].eval_strategy == "no"
    assert training_args.use_cpu is True


def test_missing_flags_are_named(capsys):
    assert main([]) == 2
    assert "--train_data" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flag", ["--max_length", "--max-length", "--max_len", "--max-input-length"]
)
def test_the_length_of_a_pair_has_one_value_under_all_of_its_names(flag):
    assert parse([*NEEDED, flag, "77"])[1].max_length == 77
    assert parse([*NEEDED, f"{flag}=77"])[1].max_length == 77


@pytest.mark.parametrize("there", [True, False])
def test_flash_attention_is_taken_where_it_is_installed(monkeypatch, there):
    monkeypatch.setattr("reranker_ft.train.config.is_flash_attn_2_available", lambda: there)
    model_args = parse([*NEEDED, "--use_flash_attn", "True"])[0]
    assert model_args.attention == ("flash_attention_2" if there else None)
    with pytest.raises(ArgumentError, match="a model has one attention"):
        parse([*NEEDED, "--use_flash_attn", "--attn_implementation", "eager"])


def test_a_flag_that_nearly_exists_gets_a_suggestion():
    with pytest.raises(ArgumentError, match=r"did you mean --train_group_size"):
        parse([*NEEDED, "--train_grop_size", "3"])
    with pytest.raises(ArgumentError, match=r"no such flag: --zzz .* see --help"):
        parse([*NEEDED, "--zzz"])
