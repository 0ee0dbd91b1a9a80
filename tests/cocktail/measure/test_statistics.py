"""Methods that weigh the models by examples, against formulas on what is measured by hand."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    MixtralConfig,
    MixtralForCausalLM,
)

from cocktail.api import mix_models
from cocktail.cli.main import main
from cocktail.errors import CocktailError
from cocktail.measure import gram
from cocktail.measure import statistics as measuring
from cocktail.measure.memory import floats_a_token
from cocktail.measure.tasks import task
from cocktail.measure.tasks.examples import read_ranked
from cocktail.pipeline import checked_plan, mix_recipe
from cocktail.recipe.recipe import make_recipe
from cocktail.write.verify import verify
from tests.cocktail.checkpoints import load, streamed
from tests.cocktail.tiny import (
    BERT,
    FAMILIES,
    examples,
    ingredients,
    ranked,
    save_model,
    write_jsonl,
)

FAMILY = "bert-reranker"
QUERY = "bert.encoder.layer.0.attention.self.query"
METHOD_NAMES = ("fisher", "regmean")
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return ingredients(FAMILY, tmp_path_factory.mktemp("models"), count=2)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("data") / "examples.jsonl", ranked(5))


def mixed(models: list[str], data: Path | None, method: str, **options: Any) -> Tensors:
    """The mix in memory."""
    settings = {"merge_method": method, "data": data, "progress": False, **options}
    model = mix_models(models, "reranker", settings.pop("weights", None), **settings)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def opened(folder: str) -> tuple[Any, Any]:
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def fisher_by_hand(folder: str, data: Path) -> Tensors:
    """The mean of squared gradients, every passage in a forward of its own."""
    model, tokenizer = opened(folder)
    read = read_ranked(data)
    found = {name: torch.zeros_like(p.data) for name, p in model.named_parameters()}
    for example in read:
        model.zero_grad()
        scores = torch.cat(
            [
                model(**tokenizer(example.query, passage, return_tensors="pt")).logits[0]
                for passage in example.passages
            ]
        )
        (scores.logsumexp(0) - scores[0]).backward()
        for name, parameter in model.named_parameters():
            found[name] += parameter.grad**2 / len(read)
    return found


def weighed_by_hand(folders: list[str], data: Path, shares: list[float]) -> Tensors:
    """The average of every tensor by shares of squared gradients, fp64."""
    tensors = [load(Path(folder)) for folder in folders]
    information = [fisher_by_hand(folder, data) for folder in folders]
    found = {}
    for name in information[0]:
        parts = [w * (F[name].double() + 1e-12) for w, F in zip(shares, information, strict=True)]
        found[name] = sum(p * t[name] for p, t in zip(parts, tensors, strict=True)) / sum(parts)
    return found


def inputs_by_hand(folder: str, data: Path) -> Iterator[tuple[str, torch.nn.Linear, torch.Tensor]]:
    """The inputs (tokens, in) of each linear layer in forwards of one pair, without padding."""
    model, tokenizer = opened(folder)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in layers}
    for name, layer in layers.items():
        layer.register_forward_pre_hook(
            lambda _, arguments, name=name: seen[name].append(arguments[0].flatten(0, -2))
        )
    with torch.no_grad():
        for example in read_ranked(data):
            for passage in example.passages:
                model(**tokenizer(example.query, passage, return_tensors="pt"))
    for name, layer in layers.items():
        yield name, layer, torch.cat(seen[name]).double()


@pytest.mark.parametrize(("weights", "tokens"), [(None, 1024), ([0.2, 0.7], 16)])
def test_fisher_is_the_average_by_squared_gradients(
    models: list[str],
    data: Path,
    weights: list[float] | None,
    tokens: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With few tokens in a forward, an example takes several."""
    monkeypatch.setattr(task, "CPU_TOKENS", tokens)
    found = mixed(models, data, "fisher", weights=weights)
    shares = weights or [1.0, 1.0]
    expected = weighed_by_hand(models, data, shares)
    tensors = [load(Path(folder)) for folder in models]
    farthest = 0.0
    for name in expected:
        # Gradients of fp32, added up in another order, differ in their fifth digit.
        torch.testing.assert_close(found[name].double(), expected[name], rtol=1e-3, atol=2e-5)
        plain = sum(w * t[name] for w, t in zip(shares, tensors, strict=True)) / sum(shares)
        farthest = max(farthest, float((found[name] - plain).abs().max()))
    assert farthest > 0.1


def test_fisher_weighs_the_words_of_a_large_vocabulary(data: Path, tmp_path: Path) -> None:
    """A search would keep the rows of those that the examples use."""
    config = BertConfig(**{**BERT, "vocab_size": 500}, num_labels=1)
    folders = []
    for seed in range(2):
        torch.manual_seed(seed)
        model = BertForSequenceClassification(config)
        folders.append(save_model(model, FAMILY, tmp_path / str(seed)))
    name = "bert.embeddings.word_embeddings.weight"
    found = mixed(folders, data, "fisher")[name].double()
    expected = weighed_by_hand(folders, data, [1.0, 1.0])[name]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=2e-5)
    one, two = (load(Path(folder))[name] for folder in folders)
    assert float((found - (one + two) / 2).abs().max()) > 0.1


def test_what_no_example_touches_is_the_average(models: list[str], data: Path) -> None:
    found = mixed(models, data, "fisher", weights=[1, 3])
    one, two = (load(Path(folder)) for folder in models)
    name = "bert.embeddings.position_embeddings.weight"  # of 512 positions a few are used
    expected = one[name].double() * 0.25 + two[name].double() * 0.75
    torch.testing.assert_close(found[name][100:].double(), expected[100:], rtol=1e-6, atol=1e-7)
    assert not torch.allclose(found[name][:4].double(), expected[:4], atol=1e-3)


def test_regmean_is_its_closed_form_on_the_layers_inputs(models: list[str], data: Path) -> None:
    alpha = 0.7
    found = mixed(models, data, "regmean", weights=[1, 2], parameters={"alpha": alpha})
    sides = [inputs_by_hand(folder, data) for folder in models]
    count = 0
    for (name, one, x), (_, two, y) in zip(*sides, strict=True):
        grams = [1 / 3 * (x.T @ x), 2 / 3 * (y.T @ y)]
        grams = [alpha * g + (1 - alpha) * torch.diag(g.diagonal()) for g in grams]
        floor = 1e-6 * float(sum(grams).trace()) * torch.eye(len(grams[0]))
        grams = [grams[0] + floor / 3, grams[1] + floor * 2 / 3]
        weighed = one.weight.double() @ grams[0] + two.weight.double() @ grams[1]
        expected = weighed @ torch.linalg.inv(sum(grams))
        torch.testing.assert_close(found[f"{name}.weight"].double(), expected, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(
            found[f"{name}.bias"], (one.bias + 2 * two.bias) / 3, rtol=1e-6, atol=1e-6
        )
        count += 1
    assert count == 14  # six a layer, the pooler and the classifier


def test_regmean_changes_a_layers_outputs_least(models: list[str], data: Path) -> None:
    """On the examples, each layer by itself: sum_i |X_i (W - W_i)^T|^2."""
    merged = mixed(models, data, "regmean", parameters={"alpha": 1.0})
    plain = mixed(models, None, "linear", weights=[0.5, 0.5])
    sides = [list(inputs_by_hand(folder, data)) for folder in models]
    for layers in zip(*sides, strict=True):
        name = f"{layers[0][0]}.weight"
        errors = [
            sum(float((x @ (w - own.weight.data).double().T).norm() ** 2) for _, own, x in layers)
            for w in (merged[name], plain[name])
        ]
        assert errors[0] < errors[1], name


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_equal_ingredients_change_nothing(
    models: list[str], data: Path, tmp_path: Path, method: str
) -> None:
    copy = shutil.copytree(models[0], tmp_path / "copy")
    found = mixed([models[0], str(copy)], data, method)
    for name, tensor in load(copy).items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != FAMILY])
@pytest.mark.parametrize("method", METHOD_NAMES)
def test_every_kind_can_be_measured(family: str, method: str, tmp_path: Path) -> None:
    folders = ingredients(family, tmp_path, count=2)
    rows = write_jsonl(tmp_path / "rows.jsonl", examples(family, 3))
    recipe = make_recipe(folders, None, merge_method=method, data=rows)
    mix_recipe(recipe, tmp_path / "out", progress=False)
    plain = make_recipe(folders, [0.5, 0.5])
    mix_recipe(plain, tmp_path / "plain", progress=False)
    found, average = load(tmp_path / "out"), load(tmp_path / "plain")
    assert any(not torch.allclose(found[name], average[name], atol=1e-2) for name in average)


def test_a_stored_copy_of_a_tied_embedding_stays_one(tmp_path: Path) -> None:
    folders = ingredients("tied-llama", tmp_path, count=2)
    for folder in folders:
        file = Path(folder) / "model.safetensors"
        tensors = load_file(file)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        save_file(tensors, file, metadata={"format": "pt"})
    rows = write_jsonl(tmp_path / "rows.jsonl", examples("tied-llama", 3))
    recipe = make_recipe(folders, None, merge_method="fisher", data=rows)
    mix_recipe(recipe, tmp_path / "out", progress=False)
    found = load(tmp_path / "out")
    assert "model.embed_tokens.weight" in found
    assert "lm_head.weight" not in found


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_repeating_gives_the_same_bytes_and_leaves_no_trace(
    models: list[str], data: Path, tmp_path: Path, method: str
) -> None:
    first, again, plain = (tmp_path / name for name in ("first", "again", "plain"))
    recipe = make_recipe(models, [1, 2], merge_method=method, data=data)
    report = mix_recipe(recipe, first, progress=False, threads=1)
    record = json.loads((first / "cocktail.json").read_text())
    assert record["recipe"]["data"] == str(data)
    assert record["data_sha256"] == hashlib.sha256(data.read_bytes()).hexdigest()
    assert {verdict.state for verdict in verify(first, progress=False)} == {"same"}
    # The recipe in the record, run on other threads, with the examples in another order.
    lines = data.read_text().splitlines()
    data_again = tmp_path / "shuffled.jsonl"
    data_again.write_text("\n".join(reversed(lines)))
    given = {**record["recipe"], "data": data_again}
    repeated = mix_recipe(make_recipe(**given), again, progress=False, threads=3)
    assert repeated.digest == report.digest
    mix_recipe(make_recipe(models, [0.5, 0.5]), plain, progress=False)
    ingredients_of = [
        json.loads((folder / "cocktail.json").read_text())["ingredients"]
        for folder in (first, plain)
    ]
    assert [e["digest"] for e in ingredients_of[0]] == [e["digest"] for e in ingredients_of[1]]
    assert {path.name for path in tmp_path.iterdir()} == {
        "first", "again", "plain", "shuffled.jsonl"
    }  # fmt: skip


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_threads_and_blocks_change_nothing(
    models: list[str], data: Path, tmp_path: Path, method: str
) -> None:
    recipe = make_recipe(models, [1, 2], merge_method=method, data=data)
    plan = measuring.measure(checked_plan(recipe, None), tmp_path, progress=False)

    whole = streamed(plan, threads=1)[0]
    for threads, block in ((1, 77), (3, 1001)):
        cut = streamed(plan, threads=threads, block=block)[0]
        assert all(torch.equal(cut[name], whole[name]) for name in whole)


def test_a_mix_that_fails_leaves_nothing_behind(
    models: list[str], data: Path, tmp_path: Path
) -> None:
    broken = Path(shutil.copytree(models[1], tmp_path / "broken"))
    tensors = load_file(broken / "model.safetensors")
    tensors[f"{QUERY}.weight"].fill_(1e30)
    tensors["bert.encoder.layer.0.attention.self.key.weight"].fill_(1e30)
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    for method in METHOD_NAMES:
        recipe = make_recipe([models[0], broken], None, merge_method=method, data=data)
        with pytest.raises(CocktailError, match=r"broken: the .* of bert\.\S+ is not finite"):
            mix_recipe(recipe, tmp_path / "out", progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def test_a_device_without_room_is_one_line(
    models: list[str], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(measuring, "_MEASURES", dict.fromkeys(("fisher", "gram"), full))
    for method in METHOD_NAMES:
        recipe = make_recipe(models, None, merge_method=method, data=data)
        with pytest.raises(CocktailError, match=r"the .* does not fit into the memory of") as e:
            mix_recipe(recipe, tmp_path / "out", progress=False)
        assert "\n" not in str(e.value)
    assert not list(tmp_path.iterdir())


ONE_PASSAGE = [{"query": "red", "pos": ["red apple"]}]
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"data": None}, "fisher has no examples .*--data"),
    ({"merge_method": "linear", "weights": [0.5, 0.5]}, "linear uses no examples"),
    ({"weights": [1, -1]}, "weight is -1.0 - it must be a number from 0"),
    ({"weights": [0, 0]}, "weights are all 0"),
    ({"parameters": {"weight": 0}}, "the weights of .* are all 0"),
    ({"parameters": {"alfa": 0.5}}, "fisher has no parameter alfa"),
    ({"merge_method": "regmean", "parameters": {"alpha": 1.5}}, "alpha is 1.5 .* from 0 to 1"),
    ({"data": "nowhere.jsonl"}, "nowhere.jsonl: cannot be read"),
    ({"data": ONE_PASSAGE}, "no example has a negative"),
    ({"data": [{"input": "a", "output": "b"}]}, ":1: lacks 'query'"),
    ({"head": "mix"}, "head is mix - fisher measures all models in one"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_what_cannot_be_measured_is_refused_by_the_plan(
    models: list[str], data: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    settings = {"merge_method": "fisher", "data": data, "weights": None, **options}
    if isinstance(settings["data"], list):
        settings["data"] = write_jsonl(tmp_path / "own.jsonl", settings["data"])
    with pytest.raises(CocktailError, match=message):
        checked_plan(make_recipe(models, **settings), None)


def test_a_model_without_linear_layers_is_refused(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=24, n_embd=8, n_layer=1, n_head=1, n_positions=64)
    folders = [save_model(GPT2LMHeadModel(config), "llama", tmp_path / name) for name in "ab"]
    rows = write_jsonl(tmp_path / "rows.jsonl", examples("llama", 2))
    recipe = make_recipe(folders, None, merge_method="regmean", data=rows)
    with pytest.raises(CocktailError, match=r"GPT2LMHeadModel has no torch\.nn\.Linear"):
        mix_recipe(recipe, tmp_path / "out", progress=False)


@pytest.mark.skipif(
    transformers.__version__.startswith("4."), reason="transformers 4 rearranges nothing"
)
def test_a_model_that_is_rearranged_as_it_loads_is_refused(tmp_path: Path) -> None:
    config = MixtralConfig(
        vocab_size=24, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1, num_key_value_heads=1, num_local_experts=2,
    )  # fmt: skip
    folders = [save_model(MixtralForCausalLM(config), "llama", tmp_path / name) for name in "ab"]
    rows = write_jsonl(tmp_path / "rows.jsonl", examples("llama", 2))
    recipe = make_recipe(folders, None, merge_method="fisher", data=rows)
    with pytest.raises(CocktailError, match="transformers rearranges"):
        mix_recipe(recipe, tmp_path / "out", progress=False)


def test_gram_matrices_are_measured_as_many_at_a_time_as_are_held(
    models: list[str],
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    expected = mixed(models, data, "regmean")
    held: list[weakref.ref[torch.Tensor]] = []

    def watched(*arguments: Any) -> Tensors:
        assert all(reference() is None for reference in held)
        found = gram.input_grams(*arguments)
        held.extend(map(weakref.ref, found.values()))
        return found

    monkeypatch.setitem(measuring._MEASURES, "gram", watched)
    monkeypatch.setattr(gram, "GRAMS_AT_ONCE", 4 * 32**2)  # one, even if it is larger
    recipe = make_recipe(models, None, merge_method="regmean", data=data)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    measuring.measure(checked_plan(recipe, None), tmp_path, progress=True)
    stored = {path.name for path in tmp_path.iterdir()}
    assert stored == {f"{i}-{number}.safetensors" for i in range(2) for number in range(14)}
    assert re.search(r"measuring: .*/140 ", capsys.readouterr().err)  # 14 layers, 5 examples
    found = mixed(models, data, "regmean")
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(("family", "tokens"), [("bert-reranker", 400), ("llama", 30)])
def test_the_plan_counts_what_a_backward_needs(family: str, tokens: int, tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 3}
    model = FAMILIES[family][1]()
    model = type(model)(type(model.config)(**{**model.config.to_dict(), **sizes})).eval()
    folders = [save_model(model, family, tmp_path / name) for name in "ab"]
    rows = write_jsonl(tmp_path / "rows.jsonl", examples(family, 3))
    plan = checked_plan(make_recipe(folders, None, merge_method="fisher", data=rows), None)
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(input_ids=torch.randint(24, (1, tokens)))
    saved = sum(nbytes for place, nbytes in kept.items() if place not in own)
    counted = 4 * tokens * floats_a_token(plan)
    assert saved <= counted <= 1.6 * saved


def test_a_bar_counts_the_examples_of_all_models(
    models: list[str], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    recipe = make_recipe(models, None, merge_method="fisher", data=data)
    measuring.measure(checked_plan(recipe, None), tmp_path, progress=True)
    assert re.search(r"measuring: .*/10 ", capsys.readouterr().err)  # 2 models, 5 examples


def test_tokenizers_that_grew_are_refused(models: list[str], data: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(models[1])
    tokenizer.add_tokens(["violet"])
    model, _ = opened(models[1])
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    grown = save_model(model, FAMILY, tmp_path / "grown")
    tokenizer.save_pretrained(grown)
    recipe = make_recipe([models[0], grown], None, merge_method="fisher", data=data)
    with pytest.raises(CocktailError, match=r"tokenizers differ .* measures all models in one"):
        checked_plan(recipe, None)


def run_command(*arguments: str) -> Any:
    return CliRunner().invoke(main, ["mix", *arguments])


def test_the_command_plans_and_mixes(models: list[str], data: Path, tmp_path: Path) -> None:
    given = [*models, "--method", "fisher", "--data", str(data), "--output", str(tmp_path / "out")]
    dry = run_command(*given, "--dry-run")
    assert dry.exit_code == 0, dry.output
    assert "fisher, reranker" in dry.output
    assert list(tmp_path.iterdir()) == []
    done = run_command(*given)
    assert done.exit_code == 0, done.output
    found = load(tmp_path / "out")
    expected = mixed(models, data, "fisher")
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_a_recipe_names_its_examples_and_steps_may_have_their_own(
    models: list[str], data: Path, tmp_path: Path
) -> None:
    step = {"name": "step", "models": models, "merge_method": "regmean", "data": str(data)}
    last = {"models": ["step", models[0]], "merge_method": "fisher", "data": str(data)}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump_all([step, last]))
    done = run_command(str(path), "--output", str(tmp_path / "out"))
    assert done.exit_code == 0, done.output
    mix_recipe(make_recipe(models, None, merge_method="regmean", data=data), tmp_path / "by-hand")
    expected = mixed([str(tmp_path / "by-hand"), models[0]], data, "fisher")
    found = load(tmp_path / "out")
    assert all(torch.equal(found[name], expected[name]) for name in found)
