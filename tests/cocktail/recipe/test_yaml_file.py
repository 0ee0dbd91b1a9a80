"""Recipes as YAML: ours and mergekit's; what is not known is refused by name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from cocktail.errors import RecipeError
from cocktail.recipe.check import recipe_problems
from cocktail.recipe.recipe import Recipe, make_recipe, recipe_of
from cocktail.recipe.yaml_file import read_recipe, read_recipes

# The shapes of recipe that mergekit's documentation shows, with models of our own.
SLERP = """
merge_method: slerp
base_model: org/base
models:
  - model: org/base
  - model: org/tuned
parameters:
  t:
    - filter: self_attn
      value: [0, 0.5, 0.3, 0.7, 1]
    - filter: mlp
      value: [1, 0.5, 0.7, 0.3, 0]
    - value: 0.5
dtype: bfloat16
tokenizer_source: base
"""
TIES = """
models:
  - model: org/one
    parameters:
      density: [1, 0.7, 0.1]
      weight: 1.0
  - model: org/two
    parameters:
      density: 0.5
      weight: [0, 0.3, 0.7, 1]
  - model: org/three
    parameters:
      density: 0.33
      weight:
        - filter: mlp
          value: 0.5
        - value: 0
merge_method: ties
base_model: org/base
parameters:
  normalize: true
  int8_mask: true
dtype: float16
out_dtype: float32
"""
CHAIN = """
name: first
merge_method: linear
models:
  - {model: org/one, parameters: {weight: 1}}
  - {model: org/two, parameters: {weight: 3}}
---
merge_method: slerp
base_model: org/base
models: [{model: first}]
parameters: {t: 0.5}
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


def refusal(tmp_path: Path, text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        recipes = [recipe_of(values) for values in read_recipes(write(tmp_path, text))]
        problems = [problem for recipe in recipes for problem in recipe_problems(recipe)]
        raise RecipeError("; ".join(problems)) if problems else AssertionError
    assert "\n" not in str(caught.value)
    return str(caught.value)


def depths(*names: str) -> dict[str, float]:
    from cocktail.recipe.schedule import layer_depths

    return layer_depths(names)


def test_slerp_with_filters_and_gradients(tmp_path: Path) -> None:
    recipe = recipe_of(read_recipe(write(tmp_path, SLERP)))
    assert recipe_problems(recipe) == []
    assert recipe.ingredients == ("org/base", "org/tuned")
    assert (recipe.base_index, recipe.merged) == (0, [1])
    assert (recipe.dtype, recipe.tokenizer_source) == ("BF16", "org/base")
    names = [f"model.layers.{i}.{part}.weight" for i in range(9) for part in ("mlp", "self_attn")]
    places = depths(*names, "lm_head.weight")
    values = {name: recipe.for_tensor(name, places)[1]["t"] for name in places}
    assert values["model.layers.0.self_attn.weight"] == 0
    assert values["model.layers.1.self_attn.weight"] == pytest.approx(0.25)
    assert values["model.layers.2.mlp.weight"] == 0.5
    assert values["model.layers.8.mlp.weight"] == 0
    assert values["lm_head.weight"] == 0.5


def test_ties_with_parameters_for_each_model(tmp_path: Path) -> None:
    recipe = recipe_of(read_recipe(write(tmp_path, TIES)))
    assert recipe_problems(recipe) == []
    assert recipe.ingredients == ("org/one", "org/two", "org/three", "org/base")
    assert recipe.dtype == "F32"
    names = [f"layers.{i}.{part}" for i in range(7) for part in ("mlp.w", "attn.w")]
    weights, options = recipe.for_tensor("layers.3.mlp.w", depths(*names))
    assert weights == pytest.approx((1.0, 0.5, 0.5))
    assert options["density"] == pytest.approx((0.7, 0.5, 0.33))
    assert options["normalize"] is True
    weights, _ = recipe.for_tensor("layers.6.attn.w", depths(*names))
    assert weights == (1.0, 1.0, 0.0)


def test_documents_are_steps(tmp_path: Path) -> None:
    first, last = (recipe_of(values) for values in read_recipes(write(tmp_path, CHAIN)))
    assert (first.name, last.models) == ("first", ("first",))
    assert first.for_tensor("a", depths("a"))[0] == (0.25, 0.75)
    with pytest.raises(RecipeError, match="2 documents"):
        read_recipe(tmp_path / "recipe.yaml")


@pytest.mark.parametrize("text", [SLERP, TIES])
def test_what_is_written_reads_back(tmp_path: Path, text: str) -> None:
    recipe = recipe_of(read_recipe(write(tmp_path, text)))
    again = recipe_of(read_recipe(write(tmp_path, recipe.to_yaml())))
    assert again == recipe


def test_a_plain_recipe_stays_plain() -> None:
    recipe = make_recipe(["a", "b"], [0.25, 0.75], dtype="bfloat16")
    assert yaml.safe_load(recipe.to_yaml()) == {
        "models": ["a", "b"],
        "weights": [0.25, 0.75],
        "dtype": "bfloat16",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("merge_methud: ties", "did you mean merge_method?"),
        ("slices: []\nmerge_method: linear", "slices (layers of different models"),
        ("models: &m [a, *m]", "an alias lies inside its own anchor"),
        ("parameters: &p {weight: *p}", "an alias lies inside its own anchor"),
        ("models: [&m {model: a, parameters: {weight: [*m]}}]", "an alias lies inside its own"),
        ("name: a\nmodels: [b, x]\n---\nname: b\nmodels: [a, x]", "in a circle"),
        ("tokenizer: {source: union, tokens: {<s>: {source: a}}}", "tokenizer has tokens - rows"),
        (
            "tokenizer: {source: union}\ntokenizer_source: base",
            "has tokenizer and tokenizer_source",
        ),
        ("tokenizer: {sorce: union}", "did you mean source?"),
        ("models: [a, b]\nweights: [1, 0]\nchat_template: alpaca", "chat_template is 'alpaca'"),
        ("experts: []", "a mixture of experts"),
        ("models: [{modle: a}]", "did you mean model?"),
        ("models: [{model: 3}]", "an item must be a folder or Hub id"),
        ("models: [a, b]\nmerge_method: tyes\nweights: [1, 1]", "did you mean ties?"),
        ("models: [a, b]\nmerge_method: ties\nweights: [1, 1]", "ties has no base"),
        ("models: [a, b]\nmerge_method: ties\nbase_model: c", "no weights for 2 models"),
        (
            "models: [a, b]\nmerge_method: ties\nbase_model: a\nweights: [1, 1]",
            "2 weights for 1 model - the base a takes none",
        ),
        (
            "models: [a, b]\nmerge_method: ties\nbase_model: c\nweights: [1, 1]\n"
            "parameters: {density: 1.5}",
            "density is 1.5 - it must be a number from 0 to 1",
        ),
        (
            "models: [a, b]\nmerge_method: ties\nbase_model: c\nweights: [1, 1]\n"
            "parameters: {densty: 0.5, t: 1}",
            "ties has no parameter densty",
        ),
        (
            "models: [a, b]\nmerge_method: ties\nbase_model: c\nweights: [1, 1]\n"
            "parameters: {weight: 1}",
            "given twice",
        ),
        ("models: [a, b, c]\nmerge_method: slerp\nbase_model: c\nparameters: {t: 1}", "takes 1"),
        ("models: [a, b]\nbase_model: c\nweights: [1, 0]", "not among the models"),
        ("models: [a, b]\nweights: [one, 0]", "every weight must be a number"),
        ("models: [a, b]\nweights: [1, 0]\nseed: true", "a whole number"),
        ("[1, 2]", "is not a map"),
        ("a: [", "is not valid YAML"),
        ("weights: [0.9, 0.1]\nmodels: [a, b]\nweights: [1, 0]", "'weights' is given twice"),
        ("models: [{model: a, model: b}]", "'model' is given twice"),
        ("[" * 3000, "is not valid YAML"),
        ("models: [a, b]\nweights: [1, %s]" % ("9" * 401), "must be finite"),
        ("models: [a, b]\nweights: [1, %s]" % ("9" * 5000), "is not valid YAML"),
        ("models: [a, b]\nweights: [1, 0]\nparameters: {1: 2}", "linear has no parameter 1"),
        (
            "models: [a, {model: b, parameters: {null: 3}}]\nweights: [1, 0]",
            "linear has no parameter None",
        ),
    ],
)
def test_refusals(tmp_path: Path, text: str, message: str) -> None:
    assert message in refusal(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not valid JSON"),
        ("[1]", "holds no recipe - a .json file must be"),
        ('{"architectures": []}', "holds no recipe"),
        ('{"recipe": {"modles": []}}', "did you mean models?"),
        ('{"recipe": {}, "steps": null}', "holds no recipe"),
        ('{"recipe": {}, "steps": 5}', "holds no recipe"),
        ('{"recipe": {}, "steps": [5]}', "is not a map"),
        ("[" * 100_000, "is not valid JSON"),
    ],
)
def test_what_is_no_record_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "cocktail.json"
    path.write_text(text)
    with pytest.raises(RecipeError, match=re.escape(message)):
        read_recipes(path)


def test_a_key_of_a_merged_map_may_be_given_again(tmp_path: Path) -> None:
    text = "models:\n- &one {model: a, parameters: {weight: 1}}\n- {<<: *one, model: b}\n"
    assert read_recipe(write(tmp_path, text))["models"] == ["a", "b"]


SLICES = """
slices:
  - sources:
      - {model: a, layer_range: [0, 2], parameters: {weight: 1}}
      - {model: b, layer_range: [0, 2], parameters: {weight: 3}}
  - sources:
      - {model: a, layer_range: [2, 6], parameters: {weight: 1}}
      - {model: b, layer_range: [2, 6], parameters: {weight: 3}}
"""


def test_slices_over_all_layers_are_models(tmp_path: Path) -> None:
    recipe = recipe_of(read_recipe(write(tmp_path, SLICES)))
    assert (recipe.models, recipe.layers, recipe_problems(recipe)) == (("a", "b"), 6, [])
    assert recipe.for_tensor("x", depths("x"))[0] == (0.25, 0.75)
    assert recipe_of(read_recipe(write(tmp_path, recipe.to_yaml()))) == recipe


@pytest.mark.parametrize(
    "change",
    [("[2, 6]", "[3, 6]"), ("model: b, layer_range: [2", "model: c, layer_range: [2"),
     ("b, layer_range: [2, 6], parameters: {weight: 3}", "b, layer_range: [2, 6]"),
     ("b, layer_range: [0, 2]", "b, layer_range: [1, 3]")],
)  # fmt: skip
def test_other_slices_are_refused(tmp_path: Path, change: tuple[str, str]) -> None:
    assert "slices (layers of different models" in refusal(tmp_path, SLICES.replace(*change))


@pytest.mark.parametrize(
    ("text", "message"),
    [("slices: [3]", "a slice is 3"), ("slices: [{sources: [{model: a}]}]", "layer_range [None]"),
     ("models: [a]\nslices: [{sources: []}]", "has models and slices")],
)  # fmt: skip
def test_broken_slices_are_one_line(tmp_path: Path, text: str, message: str) -> None:
    assert message in refusal(tmp_path, text)


@pytest.mark.parametrize("last", ["first", "middle", "last"])
def test_documents_in_any_order(tmp_path: Path, last: str) -> None:
    documents = [
        "name: one\nmodels: [a, b]\nweights: [1, 0]\n",
        "name: two\nmodels: [one, c]\nweights: [1, 0]\n",
    ]
    documents.insert(
        ["first", "middle", "last"].index(last), "models: [two, one]\nweights: [1, 0]\n"
    )
    found = read_recipes(write(tmp_path, "---\n".join(documents)))
    assert [recipe.get("name") for recipe in found] == ["one", "two", None]


@pytest.mark.parametrize(
    ("method", "unused", "base"),
    [
        ("slerp", {"weight": 0.5, "t": 0.5, "rescale": True}, "a"),
        ("model_stock", {"normalize": True, "int8_mask": True}, "c"),
        ("linear", {"weight": 1, "density": 0.5, "lambda": 2, "t": 0.1}, None),
    ],
)
def test_parameters_of_other_methods_are_passed_over(
    method: str, unused: dict[str, Any], base: str | None
) -> None:
    recipe = make_recipe(["a", "b"], None, merge_method=method, base_model=base, parameters=unused)
    assert recipe_problems(recipe) == []
    (note,) = recipe.notes()
    own = {option.name for option in recipe.options()}
    named = note.partition("does not use ")[2].removesuffix("; ignored").split(", ")
    assert set(named) == unused.keys() - own


@pytest.mark.parametrize("given", [[{"weight": 1}, {"weight": 3}], []])
def test_normalize_at_the_top_is_that_of_the_method(given: list[dict[str, Any]]) -> None:
    parameters = {} if given else {"weight": 2}
    recipe = make_recipe(
        ["a", "b"], None, normalize=True, model_parameters=given, parameters=parameters
    )
    weights, _ = recipe.for_tensor("x", depths("x"))
    assert weights == ((0.25, 0.75) if given else (0.5, 0.5))
    slerp = make_recipe(
        ["b"], None, normalize=True, merge_method="slerp", base_model="a", parameters={"t": 0.5}
    )
    assert recipe_problems(slerp) == []


def test_one_folder_by_two_spellings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    for spelling in ("base", "./base", "base/", str(tmp_path / "base"), "link"):
        recipe = make_recipe(
            ["./base", "other"], None, merge_method="slerp", base_model=spelling,
            parameters={"t": 0.5}, tokenizer_source=spelling,
        )  # fmt: skip
        assert recipe.ingredients == ("./base", "other")
        assert recipe.base_index == 0
        assert recipe.tokenizer_source in recipe.ingredients


def ties(**parameters: Any) -> Recipe:
    return make_recipe(
        ["a", "b"], [1, 1], merge_method="ties", base_model="c", parameters=parameters
    )


def test_a_missing_weight_names_tensor_and_model() -> None:
    recipe = make_recipe(
        ["a", "b"],
        None,
        merge_method="ties",
        base_model="c",
        model_parameters=[{"weight": 1}, {"weight": [{"filter": "mlp", "value": 1}]}],
    )
    with pytest.raises(RecipeError, match=r"attn\.w of b has no weight"):
        recipe.for_tensor("attn.w", depths("attn.w"))


def test_lines_scales_by_depth() -> None:
    recipe = ties(**{"lambda": 2.0, "lines_alpha": 0.5, "lines_beta": 1.0})
    names = ["embeddings.w", *(f"layer.{i}.w" for i in range(3)), "classifier.w"]
    scales = [recipe.for_tensor(name, depths(*names))[1]["lambda"] for name in names]
    assert scales == pytest.approx([1.0, 1.0, 2.0, 3.0, 3.0])
