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


# What its decoder_only trainers add: base, and with the last line layerwise.
DECODER_FLAGS = """
    --use_lora True --lora_rank 8 --lora_alpha 32 --lora_dropout 0.05 --use_flash_attn False
    --target_modules q_proj v_proj --modules_to_save embed_tokens --from_peft f --raw_peft a b
    --save_merged_lora_model True
"""
LAYERWISE_FLAGS = """
    --model_type from_raw_model --start_layer 4 --head_multi True --head_type complex
"""


def test_the_flags_of_flag_embedding_s_decoder_trainers_are_read():
    base = [*NEEDED, *shlex.split(DECODER_FLAGS), "--model_type", "decoder"]
    model_args, _, _ = parse(base)
    assert (model_args.lora_rank, model_args.lora_alpha) == (8, 32)
    assert (model_args.target_modules, model_args.raw_peft) == (["q_proj", "v_proj"], ["a", "b"])
    assert model_args.start_layer is None
    model_args, _, _ = parse([*base[:-2], *shlex.split(LAYERWISE_FLAGS)])
    assert (model_args.start_layer, model_args.head_multi) == (4, True)
    assert (model_args.head_type, model_args.decodes) == ("complex", True)
    assert parse([*NEEDED, "--model_type", "from_finetuned_model"])[0].start_layer == 8


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--start_layer", "4"], "start_layer is 4 with model_type encoder"),
        (["--model_type", "decoder", "--head_type", "double"], "head_type is 'double'"),
        (["--model_type", "decoder", "--qlora", "--use_lora", "False"], "qlora is set with"),
    ],
)
def test_flags_of_decoders_that_cannot_be_meant_are_refused(flags, reason):
    with pytest.raises(ArgumentError, match=reason):
        parse([*NEEDED, *flags])


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
