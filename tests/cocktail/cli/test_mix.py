"""The command line: what the README shows works exactly as written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner, Result
from transformers import __version__

from cocktail.cli.main import main
from tests.cocktail.checkpoints import Save, load, weights


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.mark.parametrize(
    "spelling",
    [
        ["--weights", "0.3", "0.7"],
        ["--weights", "3e-1", ".7"],
        ["--weights", "0.3,0.7"],
        ["--weights", "0.3,", "0.7"],
        ["--weights=0.3,0.7"],
        ["--weights=0.3", "0.7"],
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_mix(pair: tuple[Path, Path], tmp_path: Path, spelling: list[str], first: bool) -> None:
    models = list(map(str, pair))
    order = [*spelling, *models] if first else [*models, *spelling]
    result = run("mix", *order, "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    expected = {name: t * 0.3 + weights(1)[name] * 0.7 for name, t in weights(0).items()}
    assert all(torch.equal(t, expected[name]) for name, t in load(tmp_path / "out").items())


def test_negative_weights_are_numbers_not_options(pair: tuple[Path, Path], tmp_path: Path) -> None:
    result = run("mix", *pair, "--weights", "1.5", "-0.5", "-o", tmp_path / "out", "--json")
    assert [i["weight"] for i in json.loads(result.stdout)["ingredients"]] == [1.5, -0.5]


def test_mix_takes_the_rest_from_the_recipe(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "no models given" in run("mix", "--weights", "0.5", "0.5").output
    recipe = "models: [a, b]\nmodel_type: encoder\nweights: [1, 0]\noutput: mixed\ndtype: bf16\n"
    Path("cocktail.yaml").write_text(recipe)
    assert run("mix", "--weights", "0.5", "0.5").exit_code == 0
    mixed = load(Path("mixed"))["encoder.layer.0.scale"]
    assert mixed.dtype == torch.bfloat16
    record = json.loads(Path("mixed/cocktail.json").read_text())
    assert record["recipe"]["weights"] == [0.5, 0.5]


def test_models_on_the_command_line_leave_the_recipe_file_alone(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("cocktail.yaml").write_text("models: [x, y]\ndtype: bf16\npooling: cls\noutput: other\n")
    assert run("mix", *pair, "--weights", "0.5", "0.5", "-o", "mixed").exit_code == 0
    assert load(Path("mixed"))["encoder.layer.0.scale"].dtype == torch.float32
    assert not Path("mixed/modules.json").exists()
    assert "no output given" in run("mix", *pair, "--weights", "0.5", "0.5").stderr


def test_home_in_a_path(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    Path("cocktail.yaml").write_text("models: [~/a, ~/b]\nweights: [1, 0]\noutput: ~/mixed\n")
    assert run("mix").exit_code == 0
    assert (tmp_path / "mixed" / "config.json").is_file()


def test_the_recipe_in_the_card_runs_again_to_the_same_bytes(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("mix", *pair, "--weights", "0.3", "0.7", "--dtype", "bf16", "-o", "x").exit_code == 0
    card = Path("x/README.md").read_text()
    name, command = card.split("save this as `")[1].split("`")[:3:2]
    Path(name).write_text(card.split("```yaml\n")[1].split("```")[0])
    assert command == "cocktail mix recipe.yaml --output DIR"
    assert run(*command.replace("DIR", "y").split()[1:]).exit_code == 0
    first, second = (Path(out, "model.safetensors").read_bytes() for out in "xy")
    assert first == second


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("wieghts: [1]", "unknown key 'wieghts' - did you mean weights?"),
        ("weights: 1", "weights is 1 - it must be a list of numbers"),
        ("weights: [a]", "weights holds 'a'"),
        ("- a", "is not a map"),
        ("a: [", "is not valid YAML"),
    ],
)
def test_broken_recipes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("cocktail.yaml").write_text(content)
    result = run("mix")
    assert result.exit_code == 1
    assert message in result.output
    assert "Traceback" not in result.output


def test_dry_run_writes_nothing(pair: tuple[Path, Path], tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    arguments = ("mix", *pair, "--weights", "0.5", "0.5", "--dry-run", "-o", tmp_path / "out")
    plan = json.loads(run(*arguments, "--json").stdout)
    assert plan["output_bytes"] == sum(t.numel() * 4 for t in weights(0).values())
    assert plan["input_bytes"] == 2 * plan["output_bytes"]
    assert plan["files"][0]["path"] == "model.safetensors"
    assert plan["peak_memory_bytes"] < 450e6
    assert "peak memory about" in run(*arguments).output
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("value", ["9" * 401, "9" * 5000, "[" * 3000, "2001-99-99"])
def test_a_parameter_that_no_number_holds_is_one_line(
    pair: tuple[Path, Path], tmp_path: Path, value: str
) -> None:
    arguments = ("--base", pair[0], "--method", "slerp", "--parameter", f"t={value}")
    result = run("mix", pair[1], *arguments, "-o", tmp_path / "out")
    assert isinstance(result.exception, SystemExit)
    assert len(result.stderr.splitlines()[-1]) < 200


def test_problems_are_lines_on_stderr(pair: tuple[Path, Path], tmp_path: Path) -> None:
    result = run("mix", *pair, "--weights", "0.5", "0.2", "-o", pair[0] / "x")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith(
        "cocktail: 2 problems, nothing was written:\n  - the weights sum"
    )
    assert "Traceback" not in result.stderr
    assert "no output given" in run("mix", *pair, "--weights", "0.5", "0.5").stderr
    assert run("mix", *pair, "--weights", "x").exit_code == 2


def test_every_command_prints_one_json_object_and_nothing_else(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    mix = ("mix", *pair, "--weights", "0.5", "0.5", "-o", out)
    commands = ((*mix, "--dry-run"), mix, ("inspect", out), ("diff", *pair), ("verify", out))
    for command in commands:
        result = run(*command, "--json")
        assert isinstance(json.loads(result.stdout), dict), command
        assert result.stderr == ""  # no terminal, no bar


def test_an_interrupt_is_one_line_and_exit_code_130(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cocktail.pipeline.stream", interrupt)
    result = run("mix", *pair, "--weights", "0.5", "0.5", "-o", tmp_path / "out")
    assert result.exit_code == 130
    assert result.stderr.startswith("cocktail: interrupted; nothing was changed - ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.parametrize(("rank", "said"), [("0", "cocktail: terminated\n"), ("1", "")])
def test_sigterm_is_one_line_of_the_first_process_and_leaves_no_folder(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: str, said: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", rank)

    def ended(*_: object, **__: object) -> None:
        assert len(list(tmp_path.iterdir())) == 3  # the output is on its way
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("cocktail.pipeline.stream", ended)
    result = run("mix", *pair, "--weights", "0.5", "0.5", "-o", tmp_path / "out")
    assert result.exit_code == 143
    assert result.stderr == said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_quiet_prints_nothing(pair: tuple[Path, Path], tmp_path: Path) -> None:
    result = run("mix", *pair, "--weights", "0.5", "0.5", "-o", tmp_path / "out", "--quiet")
    assert result.output == ""


def test_json_of_a_mix(pair: tuple[Path, Path], tmp_path: Path) -> None:
    result = run("mix", *pair, "--weights", "0.5", "0.5", "-o", tmp_path / "out", "--json")
    value = json.loads(result.stdout)
    assert value["seconds"].keys() == {"mix", "sync", "total", "process"}
    record = json.loads((tmp_path / "out" / "cocktail.json").read_text())
    assert value["digest"] == record["output"]["digest"]


def test_inspect(pair: tuple[Path, Path]) -> None:
    value = json.loads(run("inspect", pair[0], "--json").stdout)
    assert value["kind"] == "encoder"
    assert value["parameters"] == sum(t.numel() for t in weights(0).values())
    text = run("inspect", pair[0], "--tensors").output
    assert "BertModel" in text and "encoder.layer.0.output.dense.weight" in text


def test_inspect_says_how_a_language_model_reranks(save: Save) -> None:
    prompt = {"query": "A: ", "between": ["\n"], "passage": "B: ", "after": ["?"]}
    record = {"prompt": prompt, "yes_token_id": 10539, "no_token_id": None}
    model = save("lm", weights(0), architectures=["LlamaForCausalLM"], reranker=record)
    text = run("inspect", model).output
    assert "kind          reranker" in text
    expected = (
        r"scoring       by answer, yes_token_id 10539, no_token_id -, prompt A: {query}\nB: {p"
    )
    assert expected in text


def test_diff_by_hand(pair: tuple[Path, Path]) -> None:
    value = json.loads(run("diff", *pair, "--json").stdout)
    a, b = weights(0), weights(1)
    for row in value["tensors"]:
        x, y = a[row["name"]].double().reshape(-1), b[row["name"]].double().reshape(-1)
        assert row["distance"] == pytest.approx(float((y - x).norm() / x.norm()))
        assert row["cosine"] == pytest.approx(float(x @ y / x.norm() / y.norm()))
    distances = [row["distance"] for row in value["tensors"]]
    assert distances == sorted(distances, reverse=True)
    x, y = (torch.cat([t.double().reshape(-1) for t in w.values()]) for w in (a, b))
    assert value["distance"] == pytest.approx(float((y - x).norm() / x.norm()))
    same = json.loads(run("diff", pair[0], pair[0], "--json").stdout)
    assert same["distance"] == 0
    assert same["cosine"] == pytest.approx(1)


def test_diff_with_a_tensor_of_zeros_is_still_json(save: Save) -> None:
    """Zero has no direction and no length to compare with; JSON has no NaN and no Infinity."""
    zero, one = {"x": torch.zeros(3), "y": torch.ones(2)}, {"x": torch.ones(3), "y": torch.ones(2)}

    def refuse(word: str) -> None:
        raise ValueError(f"{word} is not JSON")

    output = run("diff", save("zero", zero), save("one", one), "--json").stdout
    value = json.loads(output, parse_constant=refuse)
    (row,) = [row for row in value["tensors"] if row["name"] == "x"]
    assert row["distance"] is None and row["cosine"] is None


def test_diff_of_what_is_not_finite_or_tiny(save: Save) -> None:
    one = {"x": torch.tensor([1.0, float("inf")]), "y": torch.tensor([1.0, -float("inf")])}
    other = {"x": torch.tensor([1.0, -float("inf")]), "y": torch.tensor([1.0, float("nan")])}
    tiny = {"z": torch.full((3,), 1e-90, dtype=torch.float64)}
    twice = {"z": 2 * tiny["z"]}
    result = run("diff", save("one", one | tiny), save("other", other | twice), "--json")
    assert result.stderr == ""
    rows = json.loads(result.stdout)["tensors"]
    assert [row["distance"] for row in rows] == [None, None, 1]
    assert rows[2]["name"] == "z" and rows[2]["cosine"] == pytest.approx(1)
    assert run("diff", "one", "other", "--top", "-3").exit_code == 2


def test_verify_exits_with_1_for_a_changed_file(pair: tuple[Path, Path], tmp_path: Path) -> None:
    run("mix", *pair, "--weights", "0.5", "0.5", "-o", tmp_path / "out")
    assert run("verify", tmp_path / "out").exit_code == 0
    file = tmp_path / "out" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x55")
    assert run("verify", tmp_path / "out").exit_code == 1
    assert "only a mix made by cocktail can be verified" in run("verify", pair[0]).stderr


@pytest.mark.parametrize("name", sorted(main.commands))
def test_every_command_has_an_example(name: str) -> None:
    command = main.commands[name]
    text = run(name, "--help").output
    assert f"cocktail {name} " in text.partition("Example")[2]
    options = [p for p in command.params if isinstance(p, click.Option)]
    assert all(option.help for option in options)
    assert any("--json" in option.opts for option in options)


@pytest.mark.parametrize(
    ("arguments", "code", "stream", "text"),
    [
        (["methods"], 0, "stdout", "explains one."),
        (["methods", "tyes"], 1, "stderr", "did you mean ties?"),
        (["nonsense"], 2, "stderr", "No such command"),
    ],
)
def test_the_process_ends_with_the_code_and_all_of_its_output(
    arguments: list[str], code: int, stream: str, text: str
) -> None:
    command = [sys.executable, "-m", "cocktail", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == code
    assert text in getattr(done, stream)


def test_the_common_commands_do_not_import_torch(
    pair: tuple[Path, Path], save: Save, tmp_path: Path
) -> None:
    """It takes a second, which is longer than mixing most models."""
    models, mixed = [*map(str, pair)], str(tmp_path / "out")
    mix = ["mix", *models, "--weights", "0.5", "0.5", "--output", mixed]
    looks = [["verify", mixed], ["diff", models[0], mixed]]
    if not __version__.startswith("4."):  # whose sources do not say enough
        looks.append(["inspect", str(save("known", weights(0), model_type="bert"))])
    for arguments in (["mix", "--help"], [*mix, "--dry-run"], mix, *looks):
        code = (
            "import sys\nfrom cocktail.cli.main import main\n"
            f"try:\n    main({arguments})\nexcept SystemExit as done:\n    assert not done.code\n"
            "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
        assert done.returncode == 0, arguments
    assert (tmp_path / "out" / "model.safetensors").is_file()
