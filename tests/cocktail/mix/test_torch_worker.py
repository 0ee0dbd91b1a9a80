"""The engine with merge methods: the same as the function on whole tensors, however it is cut."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner
from safetensors.torch import save_file

from cocktail.cli.main import main
from cocktail.errors import CocktailError, NonFiniteError, PlanError
from cocktail.measure.memory import peak_memory
from cocktail.mix.stream import stream
from cocktail.pipeline import checked_plan, mix_recipe, mix_to_folder
from cocktail.plan.plan import build_plan
from cocktail.recipe.recipe import Recipe, make_recipe
from cocktail.write.verify import verify
from tests.cocktail.checkpoints import CONFIG, Save, load, streamed, weights

Tensors = dict[str, torch.Tensor]
TIES: dict[str, Any] = {"merge_method": "ties", "parameters": {"density": 0.4}}
DARE: dict[str, Any] = {"merge_method": "dare_ties", "parameters": {"density": 0.4}}


@pytest.fixture
def family(save: Save) -> tuple[Path, Path, Path]:
    """A base and two fine-tunes of it."""
    base = weights(0)
    tuned = [
        {name: tensor + 0.1 * weights(seed)[name] for name, tensor in base.items()}
        for seed in (1, 2)
    ]
    return save("base", base), save("one", tuned[0]), save("two", tuned[1])


def recipe_for(family: tuple[Path, Path, Path], **options: Any) -> Recipe:
    base, *models = family
    settings: dict[str, Any] = {"merge_method": "task_arithmetic", **options}
    numbers = settings.pop("weights", (0.6, 0.8))
    return make_recipe(models, numbers, base_model=base, **settings)


@pytest.mark.parametrize("options", [{}, TIES])
def test_equals_the_function_on_whole_tensors(
    family: tuple[Path, Path, Path], options: dict[str, Any]
) -> None:
    recipe = recipe_for(family, **options)
    base, one, two = map(load, family)
    mixed = streamed(build_plan(recipe))[0]
    for name, tensor in mixed.items():
        density = {"density": (0.4, 0.4)} if options else {}
        expected = recipe.method.merge(
            [one[name].clone(), two[name].clone()], base[name].clone(), [0.6, 0.8], options=density
        )
        torch.testing.assert_close(tensor, expected, rtol=1e-6, atol=1e-7)
        assert not torch.equal(tensor, base[name])


@pytest.mark.parametrize("options", [{}, TIES, DARE])
def test_threads_segments_and_blocks_change_nothing(
    family: tuple[Path, Path, Path], options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = build_plan(recipe_for(family, **options))
    whole = streamed(plan, threads=1)[0]
    monkeypatch.setattr("cocktail.mix.stream.SEGMENT", 9)
    for threads, block in ((1, 3), (3, 7), (2, 1 << 18)):
        again = streamed(plan, threads=threads, block=block)[0]
        assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_small_tensors_do_not_keep_a_large_one_waiting(save: Save) -> None:
    """Two tensors that each fill the room come first, though small ones could slip in between."""
    sizes = {"large0": 1 << 18, "large1": 1 << 18} | {f"small{i}": 1 << 10 for i in range(64)}
    models = [
        save(f"model{seed}", {
            name: torch.randn(size, generator=torch.Generator().manual_seed(seed))
            for name, size in sizes.items()
        })
        for seed in range(3)
    ]  # fmt: skip
    order: list[str] = []
    plan = build_plan(make_recipe(models[1:], (1, 1), base_model=models[0], **TIES))
    stream(plan, lambda tensor, _start, _block: order.append(tensor.name), threads=2)
    assert sorted(order[:2]) == ["large0", "large1"]


@pytest.mark.parametrize("options", [{}, TIES])
def test_written_verified_and_run_again_to_the_same_bytes(
    family: tuple[Path, Path, Path], tmp_path: Path, options: dict[str, Any]
) -> None:
    output = tmp_path / "mixed"
    done = mix_recipe(recipe_for(family, **options), output, progress=False)
    assert [verdict.state for verdict in verify(output, progress=False)] == ["same"] * 4
    card = (output / "README.md").read_text()
    recipe_file = tmp_path / "again.yaml"
    recipe_file.write_text(card.partition("```yaml\n")[2].partition("```")[0])
    result = CliRunner().invoke(main, ["mix", str(recipe_file), "-o", str(tmp_path / "again")])
    assert result.exit_code == 0, result.output
    files = [folder / "model.safetensors" for folder in (output, tmp_path / "again")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert json.loads((tmp_path / "again" / "cocktail.json").read_text())["output"]["digest"] == (
        done.digest
    )


def test_the_base_gives_the_config(family: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base = family[0]
    (base / "config.json").write_text(json.dumps(CONFIG | {"hidden_dropout_prob": 0.3}))
    mix_recipe(recipe_for(family), tmp_path / "mixed", progress=False)
    assert json.loads((tmp_path / "mixed/config.json").read_text())["hidden_dropout_prob"] == 0.3


def test_a_base_among_the_models_takes_no_weight(family: tuple[Path, Path, Path]) -> None:
    base, one, two = family
    apart = build_plan(recipe_for(family))
    among = build_plan(
        make_recipe(
            [one, base, two], [0.6, 0.8], merge_method="task_arithmetic", base_model=str(base)
        )
    )
    first, second = streamed(apart)[0], streamed(among)[0]
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_weights_may_differ_from_tensor_to_tensor(save: Save) -> None:
    a, b = weights(0), weights(1)
    recipe = make_recipe(
        [save("a", a), save("b", b)],
        None,
        parameters={"normalize": False},
        model_parameters=[
            {"weight": [{"filter": "word_embeddings", "value": 1}, {"value": 0.25}]},
            {"weight": [{"filter": "word_embeddings", "value": 0}, {"value": 0.75}]},
        ],
    )
    mixed = streamed(build_plan(recipe))[0]
    for name, tensor in mixed.items():
        first, second = (1, 0) if "word_embeddings" in name else (0.25, 0.75)
        torch.testing.assert_close(tensor, first * a[name] + second * b[name])


def test_a_filter_that_fits_nothing_is_refused(family: tuple[Path, Path, Path]) -> None:
    parameters = {"lambda": [{"filter": "mlpp", "value": 1}, {"value": 0.5}]}
    with pytest.raises(PlanError, match="'mlpp' that no tensor's name contains"):
        build_plan(recipe_for(family, parameters=parameters))


def test_the_plan_knows_the_memory_of_whole_tensors(family: tuple[Path, Path, Path]) -> None:
    blocks, whole = build_plan(recipe_for(family)), build_plan(recipe_for(family, **TIES))
    assert peak_memory(whole, 1) - peak_memory(blocks, 1) == (2 + 3) * 40 * 4


def test_a_result_that_is_not_finite_names_its_tensor(
    family: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    plan = checked_plan(
        recipe_for(family, dtype="float16", parameters={"lambda": 1e6}), tmp_path / "out"
    )
    with pytest.raises(NonFiniteError, match=r"exceeds 65504, the largest torch\.float16"):
        mix_to_folder(plan, tmp_path / "out", progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "one", "two"]


def test_an_ingredient_that_is_not_finite_names_its_tensor(
    family: tuple[Path, Path, Path],
) -> None:
    tensors = load(family[1])
    tensors["encoder.layer.0.output.dense.weight"][2, 3] = float("nan")
    save_file(tensors, family[1] / "model.safetensors")
    with pytest.raises(NonFiniteError, match=r"dense\.weight holds nan before mixing"):
        streamed(build_plan(recipe_for(family, **TIES)))


@pytest.mark.parametrize("owners", [1, 2])
def test_a_head_of_some_is_averaged_over_those_that_have_it(save: Save, owners: int) -> None:
    heads = [torch.full((1, 4), float(value)) for value in (1, 3)]
    tables = [weights(seed) for seed in range(3)]
    for table, head in zip(tables[:owners], heads, strict=False):
        table["classifier.weight"] = head
    models = [save(f"m{i}", table) for i, table in enumerate(tables)]
    plan = build_plan(make_recipe(models, [0.2, 0.6, 0.2], head="mix"))
    expected = heads[0] if owners == 1 else 0.25 * heads[0] + 0.75 * heads[1]
    torch.testing.assert_close(streamed(plan)[0]["classifier.weight"], expected)
    assert any("'classifier'" in note for note in plan.notes)


def test_steps_build_on_each_other(family: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, one, two = map(str, family)
    chain: list[dict[str, Any]] = [
        {"name": "half", "models": [one, two], "weights": [0.5, 0.5]},
        {"models": ["half", base], "weights": [0.5, 0.5]},
    ]
    file = tmp_path / "chain.yaml"
    file.write_text(yaml.safe_dump_all(chain))
    arguments = ["mix", str(file), "--output", str(tmp_path / "out")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    expected = {
        name: 0.5 * (0.5 * a + 0.5 * load(family[2])[name]) + 0.5 * load(family[0])[name]
        for name, a in load(family[1]).items()
    }
    for name, tensor in load(tmp_path / "out").items():
        torch.testing.assert_close(tensor, expected[name])
    record = json.loads((tmp_path / "out" / "cocktail.json").read_text())
    assert record["steps"][0]["name"] == "half"
    again = ["mix", str(tmp_path / "out" / "cocktail.json"), "--output", str(tmp_path / "again")]
    assert CliRunner().invoke(main, again).exit_code == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "save this as `recipe.yaml` and run `cocktail mix recipe.yaml --output DIR`" in card
    (tmp_path / "recipe.yaml").write_text(card.partition("```yaml\n")[2].partition("```")[0])
    by_card = ["mix", str(tmp_path / "recipe.yaml"), "--output", str(tmp_path / "by-card")]
    assert CliRunner().invoke(main, by_card).exit_code == 0
    made = [(tmp_path / name / "model.safetensors") for name in ("out", "again", "by-card")]
    assert len({file.read_bytes() for file in made}) == 1
    shutil.rmtree(tmp_path / "again")
    shutil.rmtree(tmp_path / "by-card")
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "base", "chain.yaml", "one", "out", "recipe.yaml", "two",
    ]  # fmt: skip
    refused = CliRunner().invoke(main, [*arguments, "--dry-run"])
    assert refused.exit_code == 1
    assert "has no dry run" in refused.output


def test_a_step_without_a_name_is_refused(family: tuple[Path, Path, Path], tmp_path: Path) -> None:
    step = recipe_for(family)
    last = make_recipe([family[0], family[1]], [0.5, 0.5])
    object.__setattr__(last, "steps", (step,))
    with pytest.raises(CocktailError, match="by a unique name"):
        mix_recipe(last, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["../evil", "/evil", "", ".", "..", "a/b", "a\0b", "x" * 100])
def test_a_step_whose_name_is_a_path_is_refused(
    family: tuple[Path, Path, Path], tmp_path: Path, name: str
) -> None:
    step = replace(recipe_for(family), name=name)
    last = replace(make_recipe([name, family[1]], [0.5, 0.5]), steps=(step,))
    with pytest.raises(CocktailError, match=r"^a recipe is called .* - a name is made of letters"):
        mix_recipe(last, tmp_path / "out", progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "one", "two"]


def test_the_command_line(family: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, one, two = map(str, family)
    arguments = ["mix", one, two, "--base", base, "--method", "ties", "--weights", "1", "1",
                 "--parameter", "density=0.3", "--output", str(tmp_path / "out")]  # fmt: skip
    result = CliRunner().invoke(main, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    value = json.loads(result.stdout)
    assert value["merge_method"] == "ties"
    assert [item["weight"] for item in value["ingredients"]] == [1, 1, "base"]
    refused = CliRunner().invoke(main, [*arguments, "--overwrite", "--parameter", "density=2"])
    assert refused.exit_code == 1
    assert "density is 2 - it must be a number from 0 to 1" in refused.output


def test_methods_are_listed_and_explained() -> None:
    listed = CliRunner().invoke(main, ["methods"])
    assert "ties" in listed.output
    one = CliRunner().invoke(main, ["methods", "ties"])
    assert "2306.01708" in one.output
    assert "density" in one.output
    unknown = CliRunner().invoke(main, ["methods", "tyes"])
    assert unknown.exit_code == 1
    assert "did you mean ties?" in unknown.output


def with_tokens(folder: Path, *added: str, rows: int | None = None) -> Path:
    """Give a checkpoint a tokenizer of ten tokens and some more, and rows for all of them."""
    vocabulary = {f"t{i}": i for i in range(10)}
    entries = [{"content": token, "id": 10 + i} for i, token in enumerate(added)]
    (folder / "tokenizer.json").write_text(
        json.dumps({"model": {"vocab": vocabulary}, "added_tokens": entries})
    )
    tensors = load(folder)
    name = "embeddings.word_embeddings.weight"
    extra = (rows or 10 + len(added)) - 10
    more = torch.randn(extra, 4, generator=torch.Generator().manual_seed(len(str(folder))))
    tensors[name] = torch.cat([tensors[name], more])
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 10 + extra}))
    return folder


EMBEDDING = "embeddings.word_embeddings.weight"


def test_rows_are_aligned_by_token(family: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, one, two = family
    with_tokens(base)
    with_tokens(one, "<x>", "<y>")
    with_tokens(two, "<y>")
    recipe = make_recipe([base, one, two], [0.5, 0.3, 0.2])
    mix_recipe(recipe, tmp_path / "out", progress=False)
    tables = [load(folder)[EMBEDDING] for folder in (base, one, two)]
    found = load(tmp_path / "out")[EMBEDDING]
    assert found.shape == (12, 4)
    common = 0.5 * tables[0][:10] + 0.3 * tables[1][:10] + 0.2 * tables[2][:10]
    torch.testing.assert_close(found[:10], common)
    torch.testing.assert_close(found[10], tables[1][10])  # <x> is known to one of them alone
    torch.testing.assert_close(found[11], 0.6 * tables[1][11] + 0.4 * tables[2][10])  # <y>
    assert json.loads((tmp_path / "out/config.json").read_text())["vocab_size"] == 12
    assert (tmp_path / "out/tokenizer.json").read_text() == (one / "tokenizer.json").read_text()
    assert [verdict.state for verdict in verify(tmp_path / "out", progress=False)] == ["same"] * 4


def test_the_tokenizer_comes_from_where_it_is_asked_for(
    family: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    base, one, _ = map(str, family)
    for folder in (base, one):
        with_tokens(Path(folder))
        (Path(folder) / "tokenizer_config.json").write_text(json.dumps({"from": folder}))
    recipe = make_recipe([base, one], [0.5, 0.5], tokenizer_source=one)
    mix_recipe(recipe, tmp_path / "out", progress=False)
    assert json.loads((tmp_path / "out/tokenizer_config.json").read_text())["from"] == one


def test_a_method_merges_the_rows_that_the_base_has(family: tuple[Path, Path, Path]) -> None:
    base, one, two = family
    for folder, tokens in zip(family, [(), ("<x>",), ("<x>",)], strict=True):
        with_tokens(folder, *tokens)
    mixed = streamed(build_plan(recipe_for(family, **TIES)))[0][EMBEDDING]
    tables = [load(folder)[EMBEDDING] for folder in (one, two, base)]
    expected = recipe_for(family, **TIES).method.merge(
        [tables[0][:10].clone(), tables[1][:10].clone()],
        tables[2].clone(),
        [0.6, 0.8],
        options={"density": (0.4, 0.4)},
    )
    torch.testing.assert_close(mixed[:10], expected)
    torch.testing.assert_close(mixed[10], (tables[0][10] + tables[1][10]) / 2)


def test_rows_that_pad_the_table_are_aligned_by_place(family: tuple[Path, Path, Path]) -> None:
    base, one, _ = family
    with_tokens(base, rows=16)
    with_tokens(one, "<x>", rows=16)
    mixed = streamed(build_plan(make_recipe([base, one], [0.5, 0.5])))[0][EMBEDDING]
    first, second = load(base)[EMBEDDING], load(one)[EMBEDDING]
    torch.testing.assert_close(mixed[10], second[10])
    torch.testing.assert_close(mixed[11:], (first[11:] + second[11:]) / 2)


def test_tokenizers_that_no_one_of_them_covers_are_refused(
    family: tuple[Path, Path, Path],
) -> None:
    base, one, _ = family
    with_tokens(base, "<x>")
    with_tokens(one, "<y>")
    with pytest.raises(PlanError, match=r"has 1 token that .* lacks \('<y>'\)"):
        build_plan(make_recipe([base, one], [0.5, 0.5]))
