"""Whole searches on tiny models."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cocktail import api
from cocktail.api import mix_models_with_data
from cocktail.errors import CocktailError, NonFiniteError, PlanError, RecipeError
from cocktail.measure.mixture import Mixture
from cocktail.measure.tasks.examples import ExampleError
from cocktail.search.objective import MixObjective
from cocktail.search.run import search_weights
from tests.cocktail.tiny import (
    FAMILIES,
    examples,
    ingredients,
    ranked,
    write_jsonl,
)

QUIET = {"progress": False, "device": "cpu"}


@pytest.fixture(scope="module")
def texts() -> list[dict]:
    """General text without labels."""
    return [
        {"text": f"{row['pos'][0]}. {row['neg'][0]} {row['neg'][1]} {row['neg'][2]}"}
        for row in ranked(30, seed=8)
    ]


@pytest.fixture(scope="module")
def found(kitchen: dict[str, str], rows: list[dict]):
    """A search with general examples, of the base and its fine-tune."""
    retain = ranked(12, negatives=5, seed=77)
    names = [kitchen["base"], kitchen["tuned"]]
    return search_weights(names, "reranker", rows, retain_data=retain, max_drop=0.05, **QUIET)


def test_the_curve_is_whole(found, rows) -> None:
    """Eleven points from the base to the fine-tune, with the plain average and LM-Cocktail's."""
    shares = [point.share for point in found.curve]
    assert shares == sorted(shares)
    assert {round(i / 10, 9) for i in range(11)} <= {round(share, 9) for share in shares}
    assert [found.curve[0].name, found.curve[-1].name] == ["base", "fine-tune"]
    assert found.point("plain average").weights == (0.5, 0.5)
    assert found.chosen in found.curve
    for point in found.points:
        assert len(point.loss.values) == len(rows)
        assert len(point.general.values) == 12
        assert point.weights == pytest.approx((1 - point.share, point.share))


def test_what_is_reported_was_measured_on_the_mix(found, kitchen, rows) -> None:
    """The figures come out again from a model that is mixed by hand."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    point = found.point("30% of the way")
    names = {name: kitchen[name] for name in ("base", "tuned")}
    model = AutoModelForSequenceClassification.from_pretrained(kitchen["base"])
    model.load_state_dict(mix_by_hand(names, point.weights))
    tokenizer = AutoTokenizer.from_pretrained(kitchen["base"])
    gains = []
    for row in rows:
        passages = [row["pos"][0], *dict.fromkeys(row["neg"])]
        inputs = tokenizer([row["query"]] * len(passages), passages, padding=True,
                           return_tensors="pt")  # fmt: skip
        with torch.no_grad():
            scores = model.eval()(**inputs).logits[:, 0]
        gains.append(1 / np.log2(1 + int((scores >= scores[0]).sum())))
    assert point.metric.mean.mean == pytest.approx(np.mean(gains), abs=1e-6)


def test_differences_are_in_pairs_from_the_base(found) -> None:
    base, other = found.point("base"), found.point("fine-tune")
    for side in ("loss", "metric", "general"):
        one, two = (getattr(point, side) for point in (base, other))
        assert one.difference.mean == 0
        assert two.difference.mean == pytest.approx(np.mean(two.values - one.values))
        assert two.difference.low < two.difference.mean < two.difference.high


def mix_by_hand(kitchen: dict[str, str], weights) -> dict[str, torch.Tensor]:
    states = [load_file(Path(folder) / "model.safetensors") for folder in kitchen.values()]
    return {
        name: sum(w * state[name] for w, state in zip(weights, states, strict=True))
        for name in states[0]
    }


def test_same_seed_same_result_in_any_order_of_examples(found, kitchen, rows) -> None:
    retain = ranked(12, negatives=5, seed=77)
    names = [kitchen["base"], kitchen["tuned"]]
    again = search_weights(
        names, "reranker", rows[::-1], retain_data=retain[::-1], max_drop=0.05, **QUIET
    )
    assert again.weights == found.weights
    for one in found.points:
        if one.name != "lm-cocktail":  # its rule is defined by the order of the data
            other = again.point(one.name)
            np.testing.assert_array_equal(one.loss.values, other.loss.values[::-1])
            assert one.loss.difference == other.loss.difference


def test_noise_is_not_taken(kitchen, rows) -> None:
    result = search_weights([kitchen["base"], kitchen["noise"]], "reranker", rows, **QUIET)
    assert result.weights == (1, 0)
    assert (result.verdict.outcome, result.gained) == ("base", False)
    assert result.verdict.headline == "This is the base: nothing was gained."


def test_of_three_the_curve_leads_to_the_best(kitchen, rows) -> None:
    names = list(kitchen.values())
    result = search_weights(names, "reranker", rows, **QUIET)
    assert result.weights[2] < 0.02
    moved = search_weights([names[i] for i in (2, 0, 1)], "reranker", rows, base=1, **QUIET)
    end, other = result.curve[-1].weights, moved.curve[-1].weights
    np.testing.assert_allclose(end, [other[1], other[2], other[0]], atol=2e-2)


def test_nobody_knows_what_it_costs_without_general_examples(kitchen, rows) -> None:
    result = search_weights([kitchen["base"], kitchen["tuned"]], "reranker", rows, **QUIET)
    [note] = result.notes
    assert "--retain" in note and "--retain-text" in note
    assert all(point.general is None for point in result.points)


def test_general_text_needs_no_labels(kitchen, rows, texts) -> None:
    """The base agrees with itself; noise agrees less, the more of it there is."""
    names = [kitchen["base"], kitchen["noise"]]
    result = search_weights(names, "reranker", rows, retain_text=texts, **QUIET)
    assert result.general_measure == "agreement"
    agreement = [point.general.mean.mean for point in result.curve]
    assert agreement[0] == 1
    assert agreement[-1] < 0.9
    assert agreement[1] > agreement[-1]
    assert all(change.side in ("target", "general") for change in result.changes)


@pytest.mark.parametrize("family", ["bert-encoder", "tied-llama", "t5"])
def test_every_kind_is_searched_with_general_text(family: str, tmp_path: Path, texts) -> None:
    models = ingredients(family, tmp_path, count=2)
    result = search_weights(
        models, FAMILIES[family][0], examples(family), retain_text=texts, **QUIET
    )
    assert sum(result.weights) == pytest.approx(1)
    base, tuned = (result.point(name).general.mean.mean for name in ("base", "fine-tune"))
    if FAMILIES[family][0] == "encoder":
        assert (result.general_measure, base) == ("agreement", 1)
        assert tuned < 1
    else:
        assert (result.general_measure, base) == ("divergence", 0)
        assert tuned > 1e-4
    json.dumps(result.to_dict(), allow_nan=False)


def test_the_limit_is_kept(found) -> None:
    """Beyond one standard error of the difference, and no further than that."""
    base = found.point("base").general.values

    def loses(point) -> bool:
        drop = base - point.general.values
        return drop.mean() - drop.std(ddof=1) / np.sqrt(len(drop)) > 0.05

    assert not loses(found.chosen)


def test_a_limit_that_nothing_keeps_gives_the_base(kitchen, rows) -> None:
    retain = ranked(40, negatives=5, seed=77)
    names = [kitchen["base"], kitchen["noise"]]
    result = search_weights(names, "reranker", rows, retain_data=retain, max_drop=0, **QUIET)
    assert result.weights == (1, 0)


@pytest.mark.parametrize("strategy", ["lm-cocktail", "gradient"])
def test_a_named_strategy_is_taken_as_asked_for(kitchen, rows, strategy: str) -> None:
    names = [kitchen["base"], kitchen["tuned"]]
    result = search_weights(names, "reranker", rows[:8], strategy=strategy, **QUIET)
    assert result.chosen.name == strategy
    assert result.verdict.outcome == "asked"
    if strategy == "gradient":
        best = min(point.loss.mean.mean for point in result.points)
        assert result.chosen.loss.mean.mean <= best + 1e-3


def test_a_named_strategy_that_is_worse_than_the_base_is_said_first(kitchen, rows) -> None:
    names = [kitchen["base"], kitchen["noise"]]
    options = {"strategy": "lm-cocktail", "temperature": 500.0}
    rows = [*rows, *ranked(30, negatives=7, seed=6)]
    result = search_weights(names, "reranker", rows, **options, **QUIET)
    assert "worse than the base" in result.verdict.headline


def test_a_folder_called_as_a_mix_is_an_ingredient(kitchen, rows, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("tuned", "noise"):
        shutil.copytree(kitchen[name], tmp_path / {"tuned": "base", "noise": "lm-cocktail"}[name])
    result = search_weights([kitchen["base"], "base", "lm-cocktail"], "reranker", rows, **QUIET)
    assert result.weights == result.chosen.weights
    assert result.point("base").weights == (1, 0, 0)
    assert result.point("base (ingredient)").weights == (0, 1, 0)


def test_no_mix_is_run_twice(kitchen, rows, texts, monkeypatch) -> None:
    run, ran = Mixture.rows, []

    def counted(self, task, weights, examples=None, **options):
        ran.append((id(task), weights.tobytes()))
        return run(self, task, weights, examples, **options)

    monkeypatch.setattr(Mixture, "rows", counted)
    for names in (list(kitchen.values()), [kitchen["base"], kitchen["tuned"]]):
        ran.clear()
        search_weights(names, "reranker", rows[:4], retain_text=texts, **QUIET)
        assert len(ran) == len(set(ran))


@pytest.mark.parametrize("evaluations", [0, 1, 5])
def test_ctrl_c_reports_the_best_so_far(kitchen, rows, monkeypatch, evaluations: int) -> None:
    run, count = Mixture.rows, 0

    def interrupted(self, *args, **kwargs):
        nonlocal count
        count += 1
        if count > evaluations:
            raise KeyboardInterrupt
        return run(self, *args, **kwargs)

    monkeypatch.setattr(Mixture, "rows", interrupted)
    names = [kitchen["base"], kitchen["noise"]]
    if evaluations < 2:
        with pytest.raises(KeyboardInterrupt):
            search_weights(names, "reranker", rows, **QUIET)
        return
    result = search_weights(names, "reranker", rows, **QUIET)
    assert result.interrupted and len(result.points) == evaluations
    losses = [point.loss.mean.mean for point in result.points]
    assert result.chosen.loss.mean.mean == min(losses)


def test_one_model_is_in_memory(kitchen, rows, monkeypatch) -> None:
    """The ingredients are streamed into one model; transformers builds no other."""
    built = []
    original = Mixture.__post_init__
    monkeypatch.setattr(Mixture, "__post_init__", lambda self: built.append(original(self)))
    search_weights(list(kitchen.values()), "reranker", rows[:4], **QUIET)
    assert len(built) == 1


def test_refilling_equals_mixing(kitchen, rows) -> None:
    from cocktail.measure.bench import prepare
    from cocktail.measure.refillable import search_plan
    from cocktail.search.options import SearchOptions

    bench = prepare(search_plan(list(kitchen.values()), None), rows, None, SearchOptions())
    weights = np.array([0.2, 0.5, 0.3])
    MixObjective(bench.mixture, bench.task).value(np.array([0.6, 0.4, 0.0]))
    bench.mixture.fill(weights)
    expected = mix_by_hand(kitchen, weights)
    for name, tensor in bench.mixture.model.state_dict().items():
        torch.testing.assert_close(tensor.cpu(), expected[name], atol=1e-6, rtol=1e-5)


def refused(error: type[CocktailError], words: str, *args, **kwargs) -> None:
    with pytest.raises(error, match=words) as caught:
        search_weights(*args, **QUIET, **kwargs)
    assert "\n" not in str(caught.value)


def test_refusals_are_one_line(kitchen, rows, tmp_path) -> None:
    names = list(kitchen.values())
    refused(ExampleError, "no examples given", names, "reranker", [])
    refused(ExampleError, "example 1: lacks 'query'", names, "reranker", [{"input": "a"}])
    refused(ExampleError, "has 7 negatives .* 99 were", names, "reranker", rows, neg_number=99)
    refused(PlanError, "1 model given", names[:1], "reranker", rows)
    refused(RecipeError, "base is 'elsewhere'", names, "reranker", rows, base="elsewhere",
            retain_data=rows)  # fmt: skip
    refused(RecipeError, "nothing is retained", names, "reranker", rows, max_drop=0.1)
    refused(RecipeError, "no labelled retain examples", names, "reranker", rows, retain_by="metric")
    refused(RecipeError, "both labelled and unlabelled", names, "reranker", rows, retain_data=rows,
            retain_text=["red", "green", "blue"])  # fmt: skip
    refused(RecipeError, "strategy is 'magic'", names, "reranker", rows, strategy="magic")
    refused(RecipeError, "temperature is 0", names, "reranker", rows, temperature=0)
    decoders = ingredients("tied-llama", tmp_path / "d", count=2)
    texts = examples("tied-llama")
    refused(RecipeError, "retain_by is metric for a decoder", decoders, "decoder", texts,
            retain_data=texts, retain_by="metric")  # fmt: skip
    refused(RecipeError, "only an encoder pools", names, "reranker", rows, pooling="cls")
    other = ingredients("roberta-reranker", tmp_path / "r", count=1)
    with pytest.raises(PlanError):
        search_weights([names[0], *other], "reranker", rows, **QUIET)


def test_a_loss_that_is_not_finite_names_ingredient_and_example(kitchen, rows, tmp_path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in Path(kitchen["base"]).iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    state = load_file(broken / "model.safetensors")
    state["classifier.weight"] = torch.full_like(state["classifier.weight"], 3e38)
    save_file(state, broken / "model.safetensors", metadata={"format": "pt"})
    words = r"broken has the loss (nan|inf) on example \d+"
    names = [kitchen["base"], str(broken)]
    refused(NonFiniteError, words, names, "reranker", rows)
    with pytest.raises(NonFiniteError, match=words):
        mix_models_with_data(names, "reranker", rows, **QUIET)


def test_one_example_gives_valid_json_and_the_base(kitchen, rows) -> None:
    names = [kitchen["base"], kitchen["tuned"]]
    result = search_weights(names, "reranker", rows[:1], retain_data=rows[1:2], **QUIET)
    assert result.weights == (1, 0)
    assert any("1 example" in note for note in result.notes)
    json.dumps(result.to_dict(), allow_nan=False)


def test_a_mix_with_data_says_what_was_measured_and_is_pushed(
    kitchen, rows, tmp_path, monkeypatch
) -> None:
    pushed = []
    monkeypatch.setattr(api, "check_push", lambda repository: pushed.append(repository))
    monkeypatch.setattr(api, "push", lambda *given: pushed.append(given))
    names, output = [kitchen["base"], kitchen["tuned"]], tmp_path / "mixed"
    general = write_jsonl(tmp_path / "general.jsonl", ranked(12, negatives=7, seed=77))
    asked = {"strategy": "auto", "retain_data": general, "push_to_hub": "org/mixed"}
    mix_models_with_data(names, "reranker", rows, output_path=output, **asked, **QUIET)
    found = search_weights(names, "reranker", rows, retain_data=general, neg_number=7, **QUIET)
    card = (output / "README.md").read_text()
    for figure in found.figures(None, "general.jsonl"):
        assert f"| {figure.dataset} | {figure.measure} | {figure.value:.4f} |" in card
    assert "model-index" in card and "general (general.jsonl)" in card
    assert pushed == ["org/mixed", (output, "org/mixed")]


def test_the_bar_moves_with_every_mix_that_runs(kitchen, rows, capsys, monkeypatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    names = [kitchen["base"], kitchen["noise"]]
    result = search_weights(names, "reranker", rows, progress=True, device="cpu")
    shown = capsys.readouterr().err
    assert "best loss" in shown
    last = [int(n) for n in re.findall(r"searching:.* (\d+)/12 ", shown)][-1]
    assert last >= result.mixes - 2  # filled before it ran for the first time, and refreshed lately


_SCRIPT = """
import json, sys
from cocktail.measure.processes import Processes
from cocktail.search.run import search_weights
processes = Processes()
result = search_weights(sys.argv[2:], "reranker", sys.argv[1], strategy="gradient",
                        progress=False, device="cpu", processes=processes)
if processes.is_first:
    print(json.dumps(result.to_dict()))
processes.leave()
"""


def test_two_processes_find_what_one_finds(kitchen, data, tmp_path) -> None:
    script = tmp_path / "run.py"
    script.write_text(_SCRIPT)
    names = [kitchen["base"], kitchen["tuned"]]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
               "--standalone", str(script), str(data), *names]  # fmt: skip
    root = Path(__file__).parents[3]
    run = subprocess.run(
        command, capture_output=True, text=True, timeout=300, cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    split = json.loads(run.stdout[run.stdout.index("{") :])
    alone = search_weights(names, "reranker", data, strategy="gradient", **QUIET)
    np.testing.assert_allclose(split["weights"], alone.weights, atol=1e-4)
    assert split["cost"]["forward_equivalents"] == pytest.approx(alone.forwards, rel=1e-3)
