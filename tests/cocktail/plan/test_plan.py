"""Whatever cannot be mixed is refused from headers and configs, with every reason at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cocktail.checkpoint.kinds import detect_kind
from cocktail.errors import PlanError
from cocktail.plan.plan import Plan, build_plan
from cocktail.recipe.recipe import make_recipe
from tests.cocktail.checkpoints import Save, weights


def plan(*models: Path, weights: tuple[float, ...] = (0.5, 0.5), **options: Any) -> Plan:
    size = options.pop("max_shard_size", "5GB")
    return build_plan(make_recipe(models, weights, **options), max_shard_size=size)


def problems(*models: Path, **options: Any) -> tuple[str, ...]:
    with pytest.raises(PlanError) as caught:
        plan(*models, **options)
    for problem in caught.value.problems:
        assert "\n" not in problem
    return caught.value.problems


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((0.5,), "1 weight for 2 models"),
        ((0.5, 0.3, 0.2), "3 weights for 2 models"),
        ((0.5, 0.502), "sum to 1.002"),
        ((0.2, 0.2), "sum to 0.4"),
        ((float("nan"), 1.0), "must be finite"),
        ((float("inf"), 0.0), "must be finite"),
    ],
)
def test_weights(pair: tuple[Path, Path], numbers: tuple[float, ...], message: str) -> None:
    (problem,) = problems(*pair, weights=numbers)
    assert message in problem


def test_weights_within_the_tolerance_and_outside_the_simplex(pair: tuple[Path, Path]) -> None:
    plan(*pair, weights=(0.5, 0.5009))
    plan(*pair, weights=(1.5, -0.5))
    normalized = plan(*pair, weights=(1, 3), normalize=True)
    assert normalized.recipe.weights == (0.25, 0.75)


def test_all_problems_in_one_message(save: Save) -> None:
    a = save("a", weights(0), hidden_act="gelu")
    other = weights(1) | {"encoder.layer.0.output.dense.weight": torch.ones(5, 7)}
    del other["encoder.layer.0.scale"]
    b = save("b", other, hidden_act="relu")
    found = " ".join(problems(a, b, weights=(0.5, 0.1), model_type="ranker"))
    for part in ("sum to 0.6", "hidden_act is 'gelu'", "[7, 5] in", "lacks 1 tensor", "'ranker'"):
        assert part in found


def test_missing_tensors_are_listed(save: Save) -> None:
    fewer = {name: t for name, t in weights(1).items() if "LayerNorm" not in name}
    (problem,) = problems(save("a", weights(0)), save("b", fewer))
    assert "b lacks 1 tensor that others have (encoder.layer.0.output.LayerNorm.weight)" in problem


@pytest.mark.parametrize(
    ("key", "ours", "theirs"),
    [
        ("hidden_size", 4, 8),
        ("position_embedding_type", "absolute", "relative_key"),
        ("hidden_act", "gelu", "relu"),
        ("rope_theta", 10000.0, 1e6),
        (
            "rope_scaling",
            {"rope_type": "linear", "factor": 2.0},
            {"rope_type": "yarn", "factor": 2},
        ),
        ("id2label", {"0": "no", "1": "yes"}, {"0": "yes", "1": "no"}),
        ("sliding_window", 4096, 1024),
        ("rope_scaling", {"type": "yarn", "factor": 4.0}, None),
        ("rope_parameters", {"full": {"rope_theta": 1e6}}, {"full": {"rope_theta": 1e4}}),
        ("text_config", {"num_hidden_layers": 2}, {"num_hidden_layers": 3}),
    ],
)
def test_configs_that_matter(save: Save, key: str, ours: Any, theirs: Any) -> None:
    found = problems(save("a", weights(0), **{key: ours}), save("b", weights(1), **{key: theirs}))
    assert any("ingredients must have the same architecture" in problem for problem in found)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"dtype": "float32"}, {"torch_dtype": "bfloat16"}),
        ({"attention_dropout": 0.0}, {"attention_dropout": 0.1}),
        ({"rope_theta": 1e6, "rope_scaling": None}, {"rope_parameters": {"rope_theta": 1e6}}),
        ({"use_cache": True, "transformers_version": "4"}, {"transformers_version": "5"}),
        ({"id2label": {"0": "LABEL_0"}}, {}),
        ({"position_embedding_type": "absolute"}, {}),
        ({"text_config": {"dtype": "float32"}}, {"text_config": {"dtype": "bfloat16", "new": 1}}),
        ({"rope_theta": 1e6}, {"rope_parameters": {"full": {"rope_theta": 1e6}}}),
        ({"num_beams": 1, "length_penalty": 1.0}, {"num_beams": 4, "length_penalty": 2.0}),
        ({"unsloth_version": "2024.9"}, {"unsloth_version": "2025.1"}),
    ],
)
def test_configs_that_do_not(save: Save, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    plan(save("a", weights(0), **ours), save("b", weights(1), **theirs))


def test_integers_must_be_equal(save: Save) -> None:
    a = save("a", weights(0) | {"steps": torch.tensor([1, 2])})
    same = save("same", weights(1) | {"steps": torch.tensor([1, 2])})
    other = save("other", weights(1) | {"steps": torch.tensor([1, 3])})
    assert len(plan(a, same).tensors) == 5
    (problem,) = problems(a, other)
    assert "steps (I64) differs" in problem


def test_quantised_weights(save: Save) -> None:
    quantised = save("q", weights(0), quantization_config={"quant_method": "gptq"})
    assert "is quantised" in problems(quantised, save("b", weights(1)))[0]
    packed = weights(0) | {"encoder.layer.0.scale": torch.ones(2, dtype=torch.int8)}
    other = weights(1) | {"encoder.layer.0.scale": torch.zeros(2, dtype=torch.int8)}
    assert "cannot be averaged" in problems(save("c", packed), save("d", other))[0]


def head(seed: int) -> dict[str, torch.Tensor]:
    body = {f"bert.{name}": tensor for name, tensor in weights(seed).items()}
    return body | {"classifier.weight": torch.full((1, 4), float(seed))}


RERANKER = {"architectures": ["BertForSequenceClassification"]}


def test_a_head_in_one_only(save: Save) -> None:
    base, tuned = save("base", weights(0)), save("tuned", head(1), **RERANKER)
    (problem,) = problems(base, tuned, model_type="encoder")
    assert "tuned has the head 'classifier' (1 tensor)" in problem
    assert "--head copy" in problem and "--head drop" in problem
    copied = plan(base, tuned, head="copy")
    assert copied.kind.name == "reranker"
    assert copied.donor.folder == tuned
    (classifier,) = [t for t in copied.tensors if t.name == "classifier.weight"]
    assert classifier.is_copy and classifier.reweighted((1.0, 0.0)) is classifier
    dropped = plan(base, tuned, head="drop")
    assert {tensor.name for tensor in dropped.tensors} == weights(0).keys()
    assert dropped.kind.name == "encoder"


def test_a_head_in_two_of_three_is_not_copied(save: Save) -> None:
    models = (save("a", head(1), **RERANKER), save("b", head(2), **RERANKER), save("c", weights(3)))
    found = problems(*models, weights=(0.4, 0.3, 0.3), head="copy")
    assert "copied from the only ingredient that has it" in found[0]


def test_no_fresh_head(save: Save) -> None:
    a, b = save("a", weights(0)), save("b", weights(1))
    assert (
        "model_type 'reranker' loads *ForSequenceClassification"
        in problems(a, b, model_type="reranker")[0]
    )
    for folder in (a, b):
        config = json.loads((folder / "config.json").read_text()) | RERANKER
        (folder / "config.json").write_text(json.dumps(config))
    assert "no ingredient has a head for reranker models" in problems(a, b)[0]


def test_side_tensors_in_one_only_are_refused_by_name(save: Save) -> None:
    a, b = save("a", weights(0)), save("b", weights(1))
    torch.save({"weight": torch.ones(1, 4), "bias": torch.ones(1)}, a / "sparse_linear.pt")
    (problem,) = problems(a, b)
    assert "a has the head 'sparse_linear.pt' (2 tensors)" in problem
    copied = plan(b, a, head="copy")
    assert [file.path for file in copied.files] == ["model.safetensors", "sparse_linear.pt"]
    torch.save({"weight": torch.ones(1, 5), "bias": torch.ones(1)}, b / "sparse_linear.pt")
    assert "sparse_linear.pt:weight has shape [1, 4] in" in problems(a, b)[0]


def llama(seed: int, *, lm_head: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    tensors = {f"model.{name}": tensor for name, tensor in weights(seed).items()}
    tensors["model.embed_tokens.weight"] = torch.full((3, 2), float(seed))
    return tensors if lm_head is None else tensors | {"lm_head.weight": lm_head}


DECODER = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}


def test_tied_in_one_only(save: Save) -> None:
    tied = save("tied", llama(0), tie_word_embeddings=True, **DECODER)
    untied = save(
        "untied", llama(1, lm_head=torch.ones(3, 2)), tie_word_embeddings=False, **DECODER
    )
    found = problems(tied, untied)
    assert any("ties its output embedding" in problem for problem in found)


def test_a_stored_copy_of_the_tied_embedding_is_left_out(save: Save) -> None:
    tied = {"tie_word_embeddings": True, **DECODER, "model_type": "made-up"}
    plain = save("plain", llama(0), **tied)
    copy = save("copy", llama(1, lm_head=torch.full((3, 2), 1.0)), **tied)
    made = plan(plain, copy)
    assert "lm_head.weight" not in {tensor.name for tensor in made.tensors}
    assert any("tied to model.embed_tokens.weight" in note for note in made.notes)
    differs = save("differs", llama(1, lm_head=torch.full((3, 2), 9.0)), **tied)
    assert "only" in problems(plain, differs)[0]


def test_a_tied_embedding_that_all_store_twice_is_mixed_once(save: Save) -> None:
    """Two names have two places in a random sequence, and a filter may fit one of them alone."""
    tied = {"tie_word_embeddings": True, **DECODER, "model_type": "made-up"}
    copies = [torch.full((3, 2), float(seed)) for seed in range(3)]
    twice = [save(f"m{i}", llama(i, lm_head=copies[i]), **tied) for i in range(3)]
    made = plan(*twice[1:], base_model=twice[0], merge_method="dare_ties")
    assert "lm_head.weight" not in {tensor.name for tensor in made.tensors}
    assert any("lm_head.weight: left out, as it is tied" in note for note in made.notes)
    apart = save("apart", llama(1, lm_head=torch.full((3, 2), 9.0)), **tied)
    assert "lm_head.weight" in {tensor.name for tensor in plan(apart, *twice[:1]).tensors}
    untied = [
        save(f"u{i}", llama(i, lm_head=copies[i]), **{**tied, "tie_word_embeddings": False})
        for i in range(2)
    ]
    assert "lm_head.weight" in {tensor.name for tensor in plan(*untied).tensors}


def test_copies_of_one_embedding_for_encoder_and_decoder_are_mixed_once(save: Save) -> None:
    names = ("shared", "encoder.embed_tokens", "decoder.embed_tokens", "lm_head")
    config = {"architectures": ["T5ForConditionalGeneration"], "model_type": "made-up"}
    models = [
        save(f"m{i}", weights(i) | {f"{n}.weight": torch.full((3, 2), 1.0 + i) for n in names},
             is_encoder_decoder=True, tie_word_embeddings=True, **config)
        for i in range(2)
    ]  # fmt: skip
    kept = {tensor.name for tensor in plan(*models).tensors} - weights(0).keys()
    assert kept == {"shared.weight"}


def test_an_untied_decoder_needs_its_head(save: Save) -> None:
    models = [save(name, llama(0), tie_word_embeddings=False, **DECODER) for name in "ab"]
    assert "no ingredient has a head for decoder models" in problems(*models)[0]


def test_an_untied_encoder_decoder_needs_its_head(save: Save) -> None:
    config = {"architectures": ["T5ForConditionalGeneration"], "tie_word_embeddings": False}
    models = [save(name, weights(0), is_encoder_decoder=True, **config) for name in "ab"]
    assert "no ingredient has a head for encoder-decoder models" in problems(*models)[0]


@pytest.mark.parametrize(
    ("architecture", "config", "kind"),
    [
        ("MarianMTModel", {"is_encoder_decoder": True}, "encoder-decoder"),
        ("T5ForConditionalGeneration", {"is_encoder_decoder": True}, "encoder-decoder"),
        ("GPT2LMHeadModel", {}, "decoder"),
        ("GPT2Model", {}, "encoder"),
        ("BertForMaskedLM", {}, "encoder"),
        ("Gemma3ForConditionalGeneration", {}, "other"),  # it is no seq2seq model
    ],
)
def test_kinds_by_their_architecture(architecture: str, config: Any, kind: str | None) -> None:
    found = detect_kind({"architectures": [architecture], **config}, has_modules=False)
    assert (found.name if found else None) == kind


def test_computed_buffers_may_be_missing(save: Save) -> None:
    old = save("old", weights(0) | {"embeddings.position_ids": torch.arange(4)})
    made = plan(old, save("new", weights(1)))
    assert len(made.tensors) == 4
    assert any("position_ids" in note for note in made.notes)


def vocabulary(folder: Path, tokens: dict[str, int]) -> Path:
    value = {"model": {"type": "WordPiece", "vocab": tokens}, "added_tokens": []}
    (folder / "tokenizer.json").write_text(json.dumps(value))
    return folder


def test_tokenizers_must_agree(save: Save) -> None:
    a = vocabulary(save("a", weights(0)), {"cat": 0, "dog": 1})
    same = vocabulary(save("same", weights(1)), {"dog": 1, "cat": 0})
    swapped = vocabulary(save("swapped", weights(1)), {"cat": 1, "dog": 0})
    plan(a, same)
    plan(a, save("none", weights(1)))
    (problem,) = problems(a, swapped)
    assert "2 tokens different ids ('cat' is 0 and 1" in problem
    (swapped / "tokenizer.json").write_text('{"model": 3}')
    assert "cannot be understood" in problems(a, swapped)[0]
    (swapped / "tokenizer.json").unlink()
    (swapped / "vocab.txt").write_text("dog\ncat\n")
    assert "2 tokens different ids" in problems(a, swapped)[0]


def modules(folder: Path, mode: str) -> Path:
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({f"pooling_mode_{mode}": True}))
    entries = [
        {"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    (folder / "modules.json").write_text(json.dumps(entries))
    return folder


def test_pooling_must_agree(save: Save) -> None:
    a = modules(save("a", weights(0)), "mean_tokens")
    plan(a, save("plain", weights(1)))
    plan(a, modules(save("same", weights(1)), "mean_tokens"), pooling="mean")
    assert "pools by cls" in problems(a, modules(save("cls", weights(1)), "cls_token"))[0]
    assert "by mean, but pooling 'cls'" in problems(a, save("b", weights(1)), pooling="cls")[0]


def test_shards_keep_every_tensor_aligned(save: Save) -> None:
    odd = {"a": torch.ones(3, dtype=torch.bfloat16), "b": torch.ones(2)}
    made = plan(save("x", odd), save("y", odd))
    assert [tensor.name for tensor in made.files[0].tensors] == ["b", "a"]
    parts = plan(save("p", weights(0)), save("q", weights(1)), max_shard_size=100)
    assert parts.files[0].path == "model-00001-of-00004.safetensors"
    assert all(file.nbytes <= 100 or len(file.tensors) == 1 for file in parts.files)
    assert parts.index(".")["metadata"]["total_size"] == parts.output_bytes


@pytest.mark.parametrize("text", ["", "5 bananas", "-1", 0, "GB"])
def test_sizes_that_are_none(pair: tuple[Path, Path], text: str | int) -> None:
    assert "max_shard_size" in problems(*pair, max_shard_size=text)[0]


def test_fewer_than_two_models(pair: tuple[Path, Path]) -> None:
    assert "1 model given" in problems(pair[0], weights=(1.0,))[0]


def test_dtype_is_the_widest_unless_asked(save: Save) -> None:
    a, b = save("a", weights(0, torch.bfloat16)), save("b", weights(1, torch.float16))
    assert plan(a, b).dtype == "F32"
    assert plan(a, a).dtype == "BF16"
    assert plan(a, b, dtype="bf16").dtype == "BF16"
