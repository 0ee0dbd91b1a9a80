"""Language models as classifiers: what is refused, and what stays when it is."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from cocktail.checkpoint.resolve import resolve
from cocktail.cli.main import main
from cocktail.errors import CheckpointError, OutputError
from cocktail.write.convert import to_classifier
from tests.language_models import make_language_model

RECORD = {"prompt": None, "yes_token_id": 5, "no_token_id": None, "layer": None}


def test_capped_logits_are_refused(tmp_path: Path) -> None:
    make_language_model(tmp_path / "lm", "llama", final_logit_softcapping=30.0)
    with pytest.raises(CheckpointError, match="final_logit_softcapping is 30"):
        to_classifier(resolve(str(tmp_path / "lm")), tmp_path / "out", RECORD)
    assert [path.name for path in tmp_path.iterdir()] == ["lm"]


def test_what_stands_at_the_output_stays(tmp_path: Path) -> None:
    make_language_model(tmp_path / "lm", "llama")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(OutputError):
        to_classifier(resolve(str(tmp_path / "lm")), tmp_path / "out", RECORD)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_a_plain_language_model_is_refused_in_one_line(tmp_path: Path) -> None:
    make_language_model(tmp_path / "lm", "llama")
    command = ["convert", str(tmp_path / "lm"), "--to", "sequence-classification"]
    result = CliRunner().invoke(main, [*command, "-o", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert "nothing with it says how it reranks" in result.output
    assert not (tmp_path / "out").exists()
