"""The command, its table and its report folder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from matplotlib.figure import Figure
from safetensors.torch import load_file

from cocktail.cli.search import search
from cocktail.errors import CocktailError, OutputError
from cocktail.search.pictures import draw_curve
from cocktail.search.report import summary
from cocktail.write.modules import write_modules
from tests.cocktail.search.results import made_up
from tests.cocktail.tiny import ingredients, ranked, write_jsonl

RUN = ["--device", "cpu", "--quiet"]


@pytest.fixture(scope="module")
def ran(kitchen, rows, tmp_path_factory) -> tuple[Path, dict]:
    """A search with everything that can be written; the folder and the JSON."""
    folder = tmp_path_factory.mktemp("ran")
    data = write_jsonl(folder / "data.jsonl", rows[:10])
    retain = write_jsonl(folder / "retain.jsonl", ranked(8, negatives=5, seed=77))
    done = CliRunner().invoke(
        search,
        [kitchen["base"], kitchen["tuned"], "--data", str(data), "--retain", str(retain),
         "--report", str(folder / "report"), "--output", str(folder / "mixed"), "--json",
         *RUN],
        catch_exceptions=False,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    return folder, json.loads(done.stdout)


def test_the_mix_is_written_with_the_weights_that_are_reported(ran) -> None:
    folder, value = ran
    recipe = json.loads((folder / "mixed" / "cocktail.json").read_text())["recipe"]
    assert recipe["weights"] == pytest.approx(value["weights"])


def test_the_card_of_the_mix_shows_what_was_measured(ran) -> None:
    folder, value = ran
    (chosen,) = [p for p in value["points"] if p["name"] == value["chosen"]]
    card = (folder / "mixed" / "README.md").read_text()
    for side, name in (("metric", "target (data.jsonl)"), ("general", "general (retain.jsonl)")):
        assert f"| {name} | ndcg@10 | {chosen[side]['mean']:.4f} |" in card
    assert "model-index" in card and str(folder) not in card.split("| model |")[0]
    picture = (folder / "report" / "curve.png").read_bytes()
    assert (folder / "mixed" / "curve.png").read_bytes() == picture


def test_the_report_says_what_the_json_says(ran) -> None:
    folder, value = ran
    assert json.loads((folder / "report" / "search.json").read_text()) == value
    text = (folder / "report" / "report.md").read_text()
    assert value["headline"] in text
    assert value["reason"][1:] in text  # a sentence there
    for point in value["points"]:
        for side in ("loss", "metric", "general"):
            assert f"{point[side]['mean']:.4f}" in text


def test_the_picture_is_a_picture(ran) -> None:
    folder, _ = ran
    assert (folder / "report" / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_a_report_without_pictures_says_what_is_missing(kitchen, data, tmp_path, monkeypatch):
    monkeypatch.setattr("cocktail.search.report.find_spec", lambda _: None)
    folder = tmp_path / "report"
    done = CliRunner().invoke(
        search, [*kitchen.values(), "--data", str(data), "--device", "cpu", "--strategy",
                 "lm-cocktail", "--report", str(folder)], catch_exceptions=False,
    )  # fmt: skip
    assert done.exit_code == 0
    assert {path.name for path in folder.iterdir()} == {"report.md", "search.json"}
    assert "pip install matplotlib plotly" in (folder / "report.md").read_text()


def test_a_report_never_lands_on_something_else(kitchen, data, tmp_path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="holds"):
        CliRunner().invoke(
            search, [*kitchen.values(), "--data", str(data), "--report", str(tmp_path)],
            catch_exceptions=False,
        )  # fmt: skip


def test_models_come_from_the_recipe_file(kitchen, data, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = {"models": [kitchen["base"], kitchen["noise"]], "model_type": "reranker"}
    Path("cocktail.yaml").write_text(json.dumps(recipe))
    done = CliRunner().invoke(
        search, ["--data", str(data), "--strategy", "lm-cocktail", "--json", *RUN],
        catch_exceptions=False,
    )  # fmt: skip
    assert json.loads(done.stdout)["models"] == recipe["models"]
    Path("cocktail.yaml").unlink()
    with pytest.raises(CocktailError, match="no models given"):
        CliRunner().invoke(search, ["--data", str(data)], catch_exceptions=False)


def test_the_first_line_is_the_verdict(kitchen, data) -> None:
    done = CliRunner().invoke(
        search, [kitchen["base"], kitchen["noise"], "--data", str(data), "--device", "cpu"],
        catch_exceptions=False,
    )  # fmt: skip
    lines = done.output.splitlines()
    assert lines[0] == "This is the base: nothing was gained."
    assert any(line.startswith("*  0.00   base") for line in lines)
    assert sum("of the way" in line or "average" in line for line in lines[3:]) >= 9
    assert "forward equivalents" in done.output


def test_general_text_is_an_option(kitchen, data, tmp_path) -> None:
    text = tmp_path / "general.txt"
    lines = [
        f"{row['pos'][0]} {row['neg'][0]}. {row['neg'][1]} {row['neg'][2]}"
        for row in ranked(20, seed=8)
    ]
    text.write_text("\n".join(lines))
    done = CliRunner().invoke(
        search, [kitchen["base"], kitchen["noise"], "--data", str(data), "--retain-text", str(text),
                 "--json", "-o", str(tmp_path / "mixed"), *RUN], catch_exceptions=False,
    )  # fmt: skip
    value = json.loads(done.stdout)
    assert value["measures"]["general"] == "agreement"
    assert value["notes"] == []


def test_a_copy_of_the_base_is_called_one(kitchen, data, tmp_path) -> None:
    output = tmp_path / "mixed"
    done = CliRunner().invoke(
        search, [kitchen["base"], kitchen["noise"], "--data", str(data), "--device", "cpu", "-o",
                 str(output)], catch_exceptions=False,
    )  # fmt: skip
    assert f"{output}: a copy of {kitchen['base']}, since nothing was gained" in done.output


def test_base_and_dtype_come_from_the_recipe_file_too(kitchen, data, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = [kitchen["noise"], kitchen["base"]]
    recipe = {"models": names, "base_model": kitchen["base"], "dtype": "bfloat16"}
    Path("cocktail.yaml").write_text(json.dumps(recipe))
    done = CliRunner().invoke(
        search, ["--data", str(data), "--strategy", "lm-cocktail", "-o", "mixed", "--json", *RUN],
        catch_exceptions=False,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert found["base"] == kitchen["base"]
    assert next(p for p in found["points"] if p["name"] == "base")["weights"] == [0, 1]
    state = load_file(Path("mixed", "model.safetensors"))
    assert {tensor.dtype for tensor in state.values()} == {torch.bfloat16}


def test_the_mix_is_written_as_the_recipe_file_says(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = {"models": ingredients("bert-encoder", tmp_path), "pooling": "mean"}
    Path("cocktail.yaml").write_text(json.dumps({**recipe, "max_shard_size": 20_000}))
    data = write_jsonl(tmp_path / "data.jsonl", ranked(4, negatives=3, seed=1))
    CliRunner().invoke(
        search, ["--data", str(data), "--strategy", "lm-cocktail", "-o", "mixed", *RUN],
        catch_exceptions=False,
    )  # fmt: skip
    pooling = json.loads(Path("mixed", "1_Pooling", "config.json").read_text())
    assert pooling["pooling_mode_mean_tokens"]
    assert len(list(Path("mixed").glob("*.safetensors"))) > 1


def test_a_pooling_that_is_not_the_models_own_is_measured_but_not_written(tmp_path) -> None:
    models = ingredients("bert-encoder", tmp_path, count=2)
    for model in models:
        write_modules(Path(model), "mean", width=32)
    data = write_jsonl(tmp_path / "data.jsonl", ranked(4, negatives=3, seed=1))
    asked = [*models, "--data", str(data), "--strategy", "lm-cocktail", "--pooling", "cls", *RUN]
    assert CliRunner().invoke(search, asked, catch_exceptions=False).exit_code == 0
    with pytest.raises(CocktailError, match="pools by mean, but pooling 'cls' was asked for"):
        CliRunner().invoke(search, [*asked, "-o", str(tmp_path / "mixed")], catch_exceptions=False)
    assert not (tmp_path / "mixed").exists()


def test_a_recipe_of_another_method_is_refused(kitchen, data, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = {"models": list(kitchen.values()), "merge_method": "ties"}
    Path("cocktail.yaml").write_text(json.dumps(recipe))
    with pytest.raises(CocktailError, match="merge_method is ties - a search finds"):
        CliRunner().invoke(search, ["--data", str(data), *RUN], catch_exceptions=False)


def test_the_table_shows_every_ingredient_by_itself(kitchen, data) -> None:
    done = CliRunner().invoke(
        search, [*kitchen.values(), "--data", str(data), "--device", "cpu"], catch_exceptions=False
    )
    for name in ("tuned", "noise"):
        assert f"{kitchen[name]} (ingredient)" in done.output


def test_the_picture_draws_both_sides(tmp_path, monkeypatch) -> None:
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: drawn.append(self))
    draw_curve(made_up(), tmp_path / "curve.png")
    target, general = drawn[0].axes
    line = target.lines[0]
    assert list(line.get_xdata()) == pytest.approx([i / 10 for i in range(11)])
    assert list(line.get_ydata()) == [point.metric.mean.mean for point in made_up().points]
    assert general.get_ylabel() == "general ndcg@10"
    draw_curve(made_up(general=False), tmp_path / "curve.png")
    assert len(drawn[1].axes) == 1


def test_an_interrupted_search_says_how_to_go_on() -> None:
    result = replace(made_up(), interrupted=True)
    last = summary(result).splitlines()[-1]
    assert "run the same command again" in last
    assert last.endswith(f"cocktail mix {' '.join(result.models)} --weights 0.6 0.4 --output DIR")
    assert "to go on" not in summary(made_up())
