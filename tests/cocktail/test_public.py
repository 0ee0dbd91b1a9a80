"""The names that the package promises: each command as a call, which gives what --json prints."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import cocktail
from cocktail.cli.main import main
from cocktail.measure.converted import Conversion
from tests.cocktail.tiny import ingredients, ranked, write_jsonl


def printed(*words: object) -> object:
    result = CliRunner().invoke(main, [*map(str, words), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def as_json(value: object) -> object:
    return json.loads(json.dumps(value))


def test_public_names_are_sorted_and_there() -> None:
    assert dir(cocktail) == sorted(cocktail.__all__)
    for name in cocktail.__all__:
        assert getattr(cocktail, name) is not None
        if name != "__version__":
            assert getattr(cocktail, name).__doc__
            assert getattr(cocktail, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = cocktail.nothing


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, cocktail; sys.exit(bool({'torch', 'numpy', 'tqdm'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_call_gives_what_its_command_prints(tmp_path: Path) -> None:
    base, tuned = ingredients("bert-reranker", tmp_path, 2)
    seen = cocktail.inspect_model(tuned)
    assert as_json(seen.to_dict()) == printed("inspect", tuned)
    assert "<table>" in seen._repr_html_()
    moved = cocktail.diff_models(base, tuned, progress=False)
    assert as_json(moved.to_dict()) == printed("diff", base, tuned)
    assert "<td" in moved._repr_html_()
    cocktail.mix_models([base, tuned], "reranker", [0.5, 0.5], tmp_path / "out", progress=False)
    checked = cocktail.verify_mix(tmp_path / "out", progress=False)
    assert checked.verified
    assert as_json(checked.to_dict()) == printed("verify", tmp_path / "out")
    assert "same" in checked._repr_html_()


def test_a_search_shows_itself_in_a_notebook(tmp_path: Path) -> None:
    models = ingredients("bert-reranker", tmp_path, 2)
    data = write_jsonl(tmp_path / "data.jsonl", ranked(6))
    found = cocktail.search_weights(
        models, None, data, strategy="lm-cocktail", device="cpu", progress=False
    )
    shown = found._repr_html_()
    assert shown.count("<tr>") == len(found.points) + 1
    assert f"{found.verdict.chosen} *" in shown


def test_a_conversion_shows_its_scores() -> None:
    found = Conversion("out", "sequence-classification", 1, (0.5,), (0.25,), 0.25)
    assert found.to_dict()["before"] == [0.5]
    assert "0.250000" in found._repr_html_()
