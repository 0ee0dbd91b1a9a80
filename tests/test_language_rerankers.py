"""A tiny language model of every family goes the whole way: train, inspect, mix, search, load."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import cocktail
from cocktail.checkpoint.inspect import inspect
from cocktail.checkpoint.resolve import resolve
from cocktail.cli.main import main
from reranker_ft import FlagLLMReranker, LayerWiseFlagLLMReranker, Reranker, RerankerError
from reranker_ft.train.flags import parse
from reranker_ft.train.start import load_for_training
from reranker_ft.train.train import run
from tests.language_models import PAIRS, make_language_model

ROOT = Path(__file__).parents[1]
FAMILIES = [
    ("gemma", "bge-llm", True),
    ("llama", "bge-llm", False),
    ("qwen3", "qwen3-reranker", False),
    ("qwen2", "mxbai-rerank-v2", False),
]


def write_data(path: Path) -> Path:
    lines = [
        {"query": query, "pos": [passage], "neg": [other for _, other in PAIRS if other != passage]}
        for query, passage in PAIRS
    ]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return path


def train(base: Path, data: Path, output: Path, *flags: str) -> None:
    run(*parse(arguments(base, data, output, *flags)))


def arguments(base: Path, data: Path, output: Path, *flags: str) -> list[str]:
    return [
        *("--model_name_or_path", str(base), "--train_data", str(data)),
        *("--output_dir", str(output), "--max_steps", "2", "--learning_rate", "1e-2"),
        *("--train_group_size", "3", "--per_device_train_batch_size", "2"),
        *("--report_to", "none", "--use_cpu", "True", *flags),
    ]


@pytest.mark.parametrize(("kind", "prompt", "start"), FAMILIES)
def test_the_whole_way(tmp_path: Path, kind: str, prompt: str, start: bool) -> None:
    base, tuned, mixed = tmp_path / "base", tmp_path / "tuned", tmp_path / "mixed"
    make_language_model(base, kind, start=start)
    data = write_data(tmp_path / "data.jsonl")
    train(base, data, tuned, "--model_type", "decoder", "--prompt_template", prompt)

    before = Reranker(base, devices="cpu", prompt_template=prompt).compute_score(PAIRS)
    reranker = Reranker(tuned, devices="cpu")
    scores = reranker.compute_score(PAIRS)
    assert scores != pytest.approx(before, abs=1e-3)
    if prompt == "bge-llm":
        theirs = FlagLLMReranker(tuned, devices="cpu").compute_score(PAIRS)
        assert scores == pytest.approx(theirs, abs=1e-5)

    found = inspect(resolve(str(tuned)))
    assert found["kind"] == "reranker"
    assert found["scoring"]["yes_token_id"] == reranker.tokenizer.convert_tokens_to_ids(
        {"bge-llm": "Yes", "qwen3-reranker": "yes", "mxbai-rerank-v2": "1"}[prompt]
    )
    assert "{query}" in found["scoring"]["prompt"]

    cocktail.mix_models([tuned, base], "reranker", [0.5, 0.5], output_path=mixed)
    assert inspect(resolve(str(mixed)))["kind"] == "reranker"
    assert "pipeline_tag: text-ranking" in (mixed / "README.md").read_text()
    average = {
        name: (weight + AutoModelForCausalLM.from_pretrained(base).state_dict()[name]) / 2
        for name, weight in AutoModelForCausalLM.from_pretrained(tuned).state_dict().items()
    }
    expected = AutoModelForCausalLM.from_pretrained(tuned)
    expected.load_state_dict(average)
    ids = reranker.encoder()(PAIRS).ids(0)
    tokens = torch.tensor(ids[None].astype("int64"))
    logits = expected(input_ids=tokens).logits[0, -1]
    scoring = found["scoring"]
    wanted = logits[scoring["yes_token_id"]]
    if scoring["no_token_id"] is not None:
        wanted = wanted - logits[scoring["no_token_id"]]
    got = Reranker(mixed, devices="cpu").compute_score(PAIRS)
    assert got[0] == pytest.approx(float(wanted), abs=1e-4)

    plain = tmp_path / "plain"
    command = ["convert", str(mixed), "--to", "sequence-classification", "-o", str(plain), "--json"]
    printed = CliRunner().invoke(main, command)
    assert printed.exit_code == 0, printed.output
    assert json.loads(printed.stdout)["largest_difference"] < 1e-5
    classifier = Reranker(plain, devices="cpu").compute_score(PAIRS)
    assert classifier == pytest.approx(got, abs=1e-5)
    served = AutoModelForSequenceClassification.from_pretrained(plain)
    assert float(served(input_ids=tokens).logits) == pytest.approx(got[0], abs=1e-5)

    lines = [json.loads(line) for line in data.read_text().splitlines()]
    searched = tmp_path / "searched"
    cocktail.mix_models_with_data(
        [str(tuned), str(base)],
        example_data=lines,
        neg_number=3,
        output_path=str(searched),
        model_type="reranker",
    )
    assert len(Reranker(searched, devices="cpu").compute_score(PAIRS)) == len(PAIRS)


GENERAL = [
    "The red bird flies over a river. Nobody knows where it goes in the winter. It comes back.",
    "A river flows over the hill. It is long and cold. The bird drinks from it in the morning.",
    "Who is it that answers the query? A passage contains an answer. It is given in a document.",
    "An instruct is a text. It says what a model shall do with a query. Some models need none.",
]


@pytest.mark.parametrize("labelled", [True, False])
def test_a_search_keeps_what_must_not_be_lost(tmp_path: Path, labelled: bool) -> None:
    base, tuned = tmp_path / "base", tmp_path / "tuned"
    make_language_model(base, "qwen3")
    data = write_data(tmp_path / "data.jsonl")
    flags = ("--model_type", "decoder", "--prompt_template", "qwen3-reranker")
    train(base, data, tuned, *flags)
    if labelled:
        retained = ["--retain", str(write_data(tmp_path / "general.jsonl"))]
    else:
        (tmp_path / "general.txt").write_text("\n".join(GENERAL) + "\n")
        retained = ["--retain-text", str(tmp_path / "general.txt")]
    command = ["search", str(tuned), str(base), "--base", str(base), "--data", str(data)]
    command += [*retained, "--max-drop", "100", "--output", str(tmp_path / "best"), "--json"]
    printed = CliRunner().invoke(main, [*command, "--device", "cpu"])
    assert printed.exit_code == 0, printed.output
    found = json.loads(printed.stdout)
    assert len(Reranker(tmp_path / "best", devices="cpu").compute_score(PAIRS)) == len(PAIRS)
    points = {point["name"]: point for point in found["points"]}
    reranker = Reranker(base, devices="cpu", prompt_template="qwen3-reranker")
    lines = data.read_text().splitlines()
    for line, ndcg in zip(lines, points["base"]["metric"]["each"], strict=True):
        row = json.loads(line)
        texts = row["pos"] + row["neg"]
        scores = reranker.compute_score([[row["query"], text] for text in texts])
        better = sum(score > scores[0] for score in scores)
        assert ndcg == pytest.approx(1 / math.log2(2 + better))
    if labelled:
        assert found["measures"]["general"] == "ndcg@10"
        for point in points.values():  # the same lines, measured as the target and as the rest
            assert sorted(point["general"]["each"]) == sorted(point["metric"]["each"])
    else:  # how far the base's order of general passages is kept
        assert points["base"]["general"]["mean"] == pytest.approx(1)
        assert 0 <= points["fine-tune"]["general"]["mean"] <= 1


def test_a_trained_reranker_is_trained_on_and_keeps_general_ability(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    base, tuned, out = tmp_path / "base", tmp_path / "tuned", tmp_path / "out"
    make_language_model(base, "llama")
    data = write_data(tmp_path / "data.jsonl")
    train(base, data, tuned, "--model_type", "decoder")
    flags = ("--keep", str(data), "--eval_data", str(data), "--save_strategy", "no")
    with pytest.raises(RerankerError, match="has no reranking head"):
        train(base, data, out, "--model_type", "decoder", *flags)
    train(tuned, data, out, *flags)
    for folder in (out, out / "fine-tuned"):
        assert len(Reranker(folder, devices="cpu").compute_score(PAIRS)) == len(PAIRS)
    assert json.loads((out / "report" / "search.json").read_text())["model_type"] == "reranker"


def test_adapters_are_scored_as_the_merged_model(tmp_path: Path) -> None:
    base, adapters, merged = tmp_path / "base", tmp_path / "adapters", tmp_path / "merged"
    make_language_model(base, "llama")
    data = write_data(tmp_path / "data.jsonl")
    flags = ("--model_type", "decoder", "--use_lora", "True", "--lora_rank", "4")
    train(base, data, adapters, *flags)
    train(base, data, merged, *flags, "--save_merged_lora_model", "True")
    scores = Reranker(adapters, devices="cpu").compute_score(PAIRS)
    assert scores == pytest.approx(Reranker(merged, devices="cpu").compute_score(PAIRS), abs=1e-5)
    flag = FlagLLMReranker(base, peft_path=adapters, devices="cpu")
    assert scores == pytest.approx(flag.compute_score(PAIRS), abs=1e-5)


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_every_layer_of_a_layerwise_model_learns_to_score(tmp_path: Path, kind: str) -> None:
    base, tuned = tmp_path / "base", tmp_path / "tuned"
    make_language_model(base, kind)
    data = write_data(tmp_path / "data.jsonl")
    train(base, data, tuned, "--model_type", "from_raw_model", "--start_layer", "1")

    before, after = (
        LayerWiseFlagLLMReranker(folder, devices="cpu", cutoff_layers=[1, 2])
        for folder in (base, tuned)
    )
    scores = after.compute_score(PAIRS)
    for old, new in zip(before.compute_score(PAIRS), scores, strict=True):
        assert new != pytest.approx(old, abs=1e-3)
    model = AutoModelForCausalLM.from_pretrained(tuned)
    yes = after.tokenizer("Yes", add_special_tokens=False)["input_ids"][0]
    for number, (query, passage) in enumerate(PAIRS):
        ids = after.encoder()([after.instruct(query, passage)]).ids(0)
        output = model(torch.tensor(ids[None].astype("int64")), output_hidden_states=True)
        first = model.lm_head(model.model.norm(output.hidden_states[1][0, -1]))[yes]
        assert scores[0][number] == pytest.approx(float(first), abs=1e-4)
        assert scores[1][number] == pytest.approx(float(output.logits[0, -1, yes]), abs=1e-4)
    with pytest.raises(RerankerError, match="layer 3 is asked for"):
        after.compute_score(PAIRS, cutoff_layers=[3])


def test_adapters_of_a_model_in_four_bits_fit_it_as_it_is(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    base, tuned, mixed = tmp_path / "base", tmp_path / "tuned", tmp_path / "mixed"
    make_language_model(base, "llama")
    data = write_data(tmp_path / "data.jsonl")
    flags = ("--model_type", "decoder", "--qlora", "--lora_rank", "4")
    model, _ = load_for_training(parse(arguments(base, data, tuned, *flags))[0])
    assert {weight.dtype for weight in model.parameters()} == {torch.uint8, torch.float32}

    train(base, data, tuned, *flags)
    assert (tuned / "adapter_model.safetensors").is_file()
    assert "quantization_config" not in json.loads((tuned / "config.json").read_text())

    as_it_was = Reranker(base, devices="cpu", prompt_template="bge-llm").compute_score(PAIRS)
    scores = Reranker(tuned, devices="cpu").compute_score(PAIRS)
    assert scores != pytest.approx(as_it_was, abs=1e-3)
    cocktail.mix_models([str(tuned), str(base)], "reranker", [1.0, 0.0], str(mixed))
    assert Reranker(mixed, devices="cpu").compute_score(PAIRS) == pytest.approx(scores, abs=1e-5)


def test_layers_and_bits_that_are_not_there_are_refused(tmp_path: Path) -> None:
    make_language_model(tmp_path / "base", "llama")
    data = write_data(tmp_path / "data.jsonl")
    with pytest.raises(RerankerError, match=r"start_layer is 8 and .* has 2 layers"):
        train(tmp_path / "base", data, tmp_path / "out", "--model_type", "from_raw_model")
    layerwise = ("--model_type", "from_raw_model", "--start_layer", "1", "--head_multi", "True")
    with pytest.raises(RerankerError, match="head_multi is set"):
        train(tmp_path / "base", data, tmp_path / "out", *layerwise)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda *_: None)
        with pytest.raises(RerankerError, match="bitsandbytes is not installed"):
            train(tmp_path / "base", data, tmp_path / "out", "--model_type", "decoder", "--qlora")


@pytest.mark.parametrize(("kind", "prompt", "start"), FAMILIES)
def test_trained_models_load_in_sentence_transformers(
    tmp_path: Path, kind: str, prompt: str, start: bool
) -> None:
    pytest.importorskip("sentence_transformers.cross_encoder.modules")
    from sentence_transformers import CrossEncoder

    make_language_model(tmp_path / "base", kind, start=start)
    data = write_data(tmp_path / "data.jsonl")
    flags = ("--model_type", "decoder", "--prompt_template", prompt)
    train(tmp_path / "base", data, tmp_path / "tuned", *flags)
    # Of one token between the parts, which no tokenizer merges with a text.
    pairs: list[Any] = [("who is it", "the red bird"), ("a river", "it flows over the hill")]
    ours = Reranker(tmp_path / "tuned", devices="cpu").compute_score(pairs)
    theirs = CrossEncoder(str(tmp_path / "tuned"), device="cpu").predict(pairs).tolist()
    assert ours == pytest.approx(theirs, abs=1e-5)
