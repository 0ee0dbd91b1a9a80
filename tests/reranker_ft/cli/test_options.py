"""Options that commands share: one thing, one name, and its aliases."""

import json

import click
import pytest
from click.testing import CliRunner

from reranker_ft.cli.main import main
from reranker_ft.cli.options import kebab, report


@pytest.mark.parametrize("command", ["check", "distil", "evaluate", "mine", "score"])
def test_help_shows_the_length_of_a_pair_once(command):
    shown = CliRunner().invoke(main, [command, "--help"]).stdout
    assert shown.count("  --max-length ") == 1
    assert "max_len" not in shown
    assert "max-input-length" not in shown


@pytest.mark.parametrize(
    "name", ["max-length", "max_length", "max-len", "max_len", "max-input-length"]
)
def test_the_length_of_a_pair_has_aliases(name, tmp_path):
    assert kebab(name) == "max-length"
    (tmp_path / "empty.jsonl").touch()
    result = CliRunner().invoke(main, ["check", str(tmp_path / "empty.jsonl"), f"--{name}", "0"])
    assert result.stderr.startswith("reranker-ft: max_length is 0")


def test_an_unknown_flag_gets_a_suggestion():
    for arguments in (["mine", "--negativ_number", "3"], ["score", "m", "--batchsize", "3"]):
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 2
        (line,) = result.stderr.splitlines()
        assert line.startswith("reranker-ft: No such option")
        assert "--negative-number" in line or "--batch-size" in line


def test_json_has_no_infinities(capsys):
    with click.Context(click.Command("any")):
        report({"low": -float("inf"), "rows": [float("nan"), 1.5]}, "text", True)
    assert json.loads(capsys.readouterr().out) == {"low": None, "rows": [None, 1.5]}
