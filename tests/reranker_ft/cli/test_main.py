"""The command line: every command end to end, one-line errors, help that starts at once."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from reranker_ft.cli.main import main
from tests.reranker_ft.conftest import toy_rows
from tests.reranker_ft.evaluate.test_calibrate import judged_by

COMMANDS = sorted(main.commands)


def run(*arguments, input=None, code=0):
    """Runs a command and returns its result, once the exit code is as expected."""
    result = CliRunner().invoke(main, [str(a) for a in arguments], input=input)
    assert result.exit_code == code, result.output
    if result.exception is not None:
        assert isinstance(result.exception, SystemExit), result.exception
    return result


def test_commands():
    assert COMMANDS == ["calibrate", "check", "distil", "evaluate", "mine", "score", "train"]


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
def test_help_has_an_example(command):
    result = run(*command, "--help")
    assert "Example:" in result.stdout
    assert f"reranker-ft {command[0] if command else 'train'} " in result.stdout


def test_every_option_has_help():
    for command in main.commands.values():
        for parameter in command.params:
            if parameter.param_type_name == "option":
                assert parameter.help, (command.name, parameter.name)


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS if name != "train")])
def test_help_does_not_import_torch(command):
    code = (
        "import sys\n"
        "from reranker_ft.cli.main import main\n"
        f"main({[*command, '--help']!r}, standalone_mode=False)\n"
        "heavy = {'torch', 'transformers', 'numpy', 'bm25s', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(' '.join(heavy) or 0)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_flags_of_training_are_those_of_its_config():
    result = run("train", "--help")
    for flag in ("--train_group_size", "--knowledge_distillation", "--learning_rate"):
        assert flag in result.stdout


def test_train_passes_its_arguments_on(monkeypatch):
    import reranker_ft.run

    seen = []
    monkeypatch.setattr(reranker_ft.run, "main", lambda argv: seen.append(argv) or 3)
    arguments = ["--output_dir", "o", "--fp16", "--train_data", "a", "b", "--learning-rate", "6e-5"]
    run("train", *arguments, code=3)
    assert seen == [arguments]


def test_evaluate(model_folders, write_jsonl, tmp_path):
    models = [model_folders("bert"), model_folders("roberta")]
    data = write_jsonl(toy_rows(10))
    common = ["evaluate", *models, "--data", data, "--devices", "cpu"]
    result = run(*common, "--json", "--plot", tmp_path / "out.png", "--max_queries", 6)
    first, second = json.loads(result.stdout)["results"]
    assert first["queries"] == 6
    assert first["model"] == str(models[0])
    assert second["difference_to_first"]["map"]["mean"] == pytest.approx(
        second["metrics"]["map"]["mean"] - first["metrics"]["map"]["mean"]
    )
    assert (tmp_path / "out.png").stat().st_size > 1000
    table = run(*common).stdout
    assert "NDCG@10" in table
    assert "- the first" in table
    refused = run(*common, "--plot", tmp_path / "out.png", code=1)
    assert refused.stderr.strip().startswith("reranker-ft:")
    assert "exists" in refused.stderr
    # Before anything is measured, not after it.
    assert "'f1' is not one of" in run(*common, "--metric", "f1", code=2).stderr


def test_score_reads_and_writes_files_and_streams(model_folders, write_jsonl, tmp_path):
    pairs = [{"query": "red", "passage": f"apple {i}"} for i in range(5)]
    data, output = write_jsonl(pairs), tmp_path / "scores.jsonl"
    common = ["score", model_folders(), "--devices", "cpu"]
    result = run(*common, "--data", data, "--output", output, "--json")
    assert json.loads(result.stdout) == {"lines": 5, "pairs": 5, "output": str(output)}
    written = output.read_text()
    streamed = run(*common, input=data.read_text())
    assert streamed.stdout == written
    tsv = "".join(f"red\tapple {i}\n" for i in range(5))
    assert run(*common, "--tsv", input=tsv).stdout == written
    normalized = run(*common, "--normalize", "--tsv", input=tsv).stdout.splitlines()
    for raw, line in zip(written.splitlines(), normalized, strict=True):
        sigmoid = 1 / (1 + math.exp(-json.loads(raw)["score"]))
        assert json.loads(line)["score"] == pytest.approx(sigmoid)
    run(*common, "--data", data, "--output", output, code=1)
    assert output.read_text() == written
    again = tmp_path / "again.jsonl"
    run(*common, "--input_file", data, "--output_file", again)  # the names of mine and distil
    assert again.read_text() == written
    run(*common, "--data", data, "--output", output, "--overwrite")
    broken = run(*common, input='{"query": "a", "passage": "b"}\n{"query": 1}\n', code=1)
    assert "-:2: neither" in broken.stderr


def test_distil(model_folders, write_jsonl, tmp_path):
    data, output = write_jsonl(toy_rows(3)), tmp_path / "scored.jsonl"
    result = run(
        *("distil", model_folders(), "--input_file", data, "--output_file", output),
        *("--devices", "cpu", "--json"),
    )
    assert json.loads(result.stdout)["pairs"] == 18
    assert len(json.loads(output.read_text().splitlines()[0])["neg_scores"]) == 5


def test_check_reports_and_tells_by_its_exit_code(model_folders, write_jsonl):
    good = write_jsonl(toy_rows(4, negatives=8), "good.jsonl")
    counted = run("check", good, "--model_name_or_path", model_folders(), "--max_len", 12)
    assert "max_length 12 cuts" in counted.stdout
    assert "no issues found" in counted.stdout
    bad = write_jsonl([{"query": "q", "pos": []}, *toy_rows(1)], "bad.jsonl")
    fields = json.loads(run("check", bad, "--json", code=1).stdout)
    assert (fields["problems"], fields["trainable"]) == (1, False)
    text = run("check", bad, code=1).stdout
    assert "bad.jsonl:1: `pos` is an empty list" in text
    assert "1 line has fewer than 7 negatives" in text


@pytest.mark.parametrize("command", ["score", "distil", "evaluate", "mine", "check"])
def test_no_bars_where_stderr_is_no_terminal(command, model_folders, write_jsonl, tmp_path):
    model, data = model_folders(), write_jsonl(toy_rows(6))
    files = ["--input_file", data, "--output_file", tmp_path / "out.jsonl"]
    arguments = {
        "score": [model, "--data", data, "--devices", "cpu"],
        "distil": [model, *files, "--devices", "cpu"],
        "evaluate": [model, "--data", data, "--devices", "cpu"],
        "mine": [*files, "--reranker", model, "--devices", "cpu"],
        "check": [data, "--model_name_or_path", model],
    }
    assert run(command, *arguments[command]).stderr == ""


def run_without_torch(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own that ends where it imports torch."""
    (folder / "torch").mkdir()
    (folder / "torch" / "__init__.py").write_text("raise SystemExit(77)\n")
    paths = [str(folder), str(Path(__file__).parents[3]), *sys.path]
    return subprocess.run(
        [sys.executable, "-m", "reranker_ft", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["score", "m"], "scoring: standard input with m"),
        (["evaluate", "m", "n", "--data", "d"], "evaluating: m, n on d"),
        (["distil", "m", "--input-file", "d", "--output-file", "o"], "scoring: d with m"),
        (["calibrate", "m", "--data", "d"], "calibrating: m on d"),
        (["check", "d", "--model-name-or-path", "m"], "checking: d with the tokenizer of m"),
        (
            ["mine", "--input-file", "d", "--output-file", "o", "--reranker", "m"],
            "mining: d with m",
        ),
        (
            ["train", "--train-data=d", "--model_name_or_path", "m", "--output_dir", "o"],
            "training: m on d",
        ),
    ],
)
def test_what_begins_is_told_before_torch_is_imported(arguments, told, tmp_path):
    done = run_without_torch(tmp_path, *arguments)
    assert (done.returncode, done.stdout) == (77, "")
    assert done.stderr == f"{told}; torch and transformers start first\n"


@pytest.mark.parametrize(
    "arguments", [["score"], ["train", "--output_dir", "o"], ["evaluate", "m", "--plot", "p.txt"]]
)
def test_a_wrong_call_is_told_nothing_but_what_is_wrong(arguments, tmp_path):
    assert "start first" not in run_without_torch(tmp_path, *arguments).stderr


def test_counting_lines_needs_no_torch(write_jsonl, tmp_path):
    data = write_jsonl(toy_rows(6))
    checked = run_without_torch(tmp_path, "check", data)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_mining_by_words_needs_no_torch(write_jsonl, tmp_path):
    data, mined = write_jsonl(toy_rows(6)), tmp_path / "mined.jsonl"
    done = run_without_torch(tmp_path, "mine", "--input-file", data, "--output-file", mined)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(mined.read_text().splitlines()) == 6


@pytest.mark.parametrize("command", ["score", "distil", "mine", "evaluate"])
def test_an_output_that_is_a_folder_is_refused_before_the_work(command, write_jsonl, tmp_path):
    data, folder = write_jsonl(toy_rows(1)), tmp_path / "folder.png"
    folder.mkdir()
    arguments = {
        "score": ["./absent", "--data", data, "--output", folder],
        "distil": ["./absent", "--input_file", data, "--output_file", folder],
        "mine": ["--reranker", "./absent", "--input_file", data, "--output_file", folder],
        "evaluate": ["./absent", "--data", data, "--plot", folder],
    }
    refused = run(command, *arguments[command], "--overwrite", code=1).stderr
    assert refused.startswith(f"reranker-ft: {folder} is a folder")


def test_scores_on_standard_output_are_utf_8_whatever_the_terminal_is(model_folders):
    code = (
        "import sys\n"
        "from reranker_ft.cli.main import main\n"
        f"main(['score', {str(model_folders())!r}, '--devices', 'cpu', '--tsv'])\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        input="was\tgrün\n".encode(),
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert json.loads(result.stdout.decode("utf-8"))["passage"] == "grün"


def test_the_package_runs_as_the_command():
    command = [sys.executable, "-m", "reranker_ft", "check", "/no/such", "--max_len", "7"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith("reranker-ft: /no/such does not exist")


def test_calibrate(model_folders, write_jsonl, tmp_path):
    data = write_jsonl(judged_by(model_folders("bert")))
    common = ["calibrate", model_folders("bert"), "--data", data, "--devices", "cpu"]
    shown = run(*common, "--max_length", 48).stdout
    assert "probability = sigmoid(" in shown
    assert "F1 at .5" in shown
    assert "--output DIR" in shown
    found = json.loads(run(*common, "--output", tmp_path / "out", "--json").stdout)
    assert found["output"] == str(tmp_path / "out")
    assert found["before"]["ece"]["low"] <= found["before"]["ece"]["mean"]
    assert "exists" in run(*common, "--output", tmp_path / "out", code=1).stderr
