"""A task of mteb as the general side of a search."""

import json
import sys

import pytest
from click.testing import CliRunner

from cocktail.cli.main import main
from cocktail.errors import CocktailError, RecipeError
from cocktail.search.run import search_weights
from tests.cocktail.tiny import examples, ingredients, ranked, write_jsonl
from tests.mteb_tasks import bitext_task, local_task

QUIET = {"progress": False, "device": "cpu"}


@pytest.fixture
def general(tmp_path):
    return write_jsonl(tmp_path / "general.jsonl", ranked(12, negatives=9, seed=77))


def test_the_command_takes_a_task_by_name(kitchen, data, general, tmp_path, monkeypatch):
    mteb = pytest.importorskip("mteb")
    monkeypatch.setattr(mteb, "get_task", lambda name: {"LocalTask": local_task(general)}[name])
    words = ["search", kitchen["base"], kitchen["tuned"], "--data", str(data), "--device", "cpu"]
    words += ["--retain", "LocalTask", "--output", str(tmp_path / "mixed"), "--json", "--quiet"]
    printed = CliRunner().invoke(main, words)
    assert printed.exit_code == 0, printed.output
    found = json.loads(printed.stdout)
    assert found["measures"]["general"] == "ndcg@10"
    assert len(found["general_examples"]) == 12
    assert all(place.startswith("LocalTask query q") for place in found["general_examples"])
    assert "general (LocalTask)" in (tmp_path / "mixed" / "README.md").read_text()


def test_a_task_object_is_as_good_as_its_name(kitchen, rows, general):
    pytest.importorskip("mteb")
    models = [kitchen["base"], kitchen["tuned"]]
    task = local_task(general, candidates=False)
    found = search_weights(models, "reranker", rows, retain_data=task, neg_number=3, **QUIET)
    assert found.general_measure == "ndcg@10"
    assert len(found.general_places) == 12


@pytest.mark.parametrize("installed", [True, False])
def test_refusals_are_one_line(kitchen, rows, monkeypatch, installed):
    if installed:
        mteb = pytest.importorskip("mteb")
        bitext = bitext_task()
        words = "no such file, and mteb has no benchmark or task 'Nothing'"
    else:
        monkeypatch.setitem(sys.modules, "mteb", None)
        words = r"no such file, and mteb, which reads .* not installed .* pip install '.\[mteb\]'"
    models = [kitchen["base"], kitchen["tuned"]]
    with pytest.raises(CocktailError, match=words) as caught:
        search_weights(models, "reranker", rows, retain_data="Nothing", **QUIET)
    assert "\n" not in str(caught.value)
    if installed:
        monkeypatch.setattr(mteb, "get_task", lambda _: bitext)
        with pytest.raises(CocktailError, match="is a task of type BitextMining - a reranker"):
            search_weights(models, "reranker", rows, retain_data="Mock", **QUIET)


def test_a_file_that_is_missing_is_no_task(kitchen, rows):
    models = [kitchen["base"], kitchen["tuned"]]
    for name in ("general.jsonl", "./general"):
        with pytest.raises(CocktailError, match=r"cannot be read .* check the path"):
            search_weights(models, "reranker", rows, retain_data=name, **QUIET)


def test_a_decoder_has_no_task(tmp_path):
    models = ingredients("llama", tmp_path, count=2)
    with pytest.raises(RecipeError, match=r"NanoBEIR: .* while a decoder is measured on inputs"):
        search_weights(models, None, examples("llama"), retain_data="NanoBEIR", **QUIET)
