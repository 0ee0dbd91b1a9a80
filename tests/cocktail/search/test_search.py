"""Whole searches on tiny models."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cocktail.api import mix_models_with_data
from cocktail.errors import CocktailError, NonFiniteError, PlanError, RecipeError
from cocktail.measure.mixture import Mixture
from cocktail.measure.tasks.decoder import DecoderTask
from cocktail.measure.tasks.examples import ExampleError, read_written
from cocktail.search.objective import MixObjective
from cocktail.search.run import search_weights
from tests.cocktail.tiny import (
    FAMILIES,
    WORDS,
    examples,
    ingredients,
    ranked,
    save_model,
    tokenizer,
)

QUIET = {"progress": False, "device": "cpu"}


@pytest.fixture(scope="module")
def found(kitchen: dict[str, str], rows: list[dict]):
    return search_weights(list(kitchen.values()), "reranker", rows, **QUIET)


def test_noise_gets_next_to_nothing(found) -> None:
    """Cross-entropy alone would mix it in, because it shrinks over-confident scores."""
    assert found.weights[2] < 0.02
    assert found.candidate("gradient").weights[2] < 0.05
    assert found.candidate("lm-cocktail").weights[2] > 0.25


def test_what_is_reported_was_measured_on_the_mix(found, kitchen, rows) -> None:
    """Every in-sample loss comes out again from a model mixed anew with these weights."""
    for candidate in found.candidates:
        assert len(candidate.measured.losses) == len(rows)
        assert sum(candidate.weights) == pytest.approx(1)
        assert candidate.held_out is not None
    options = {"strategy": "ensemble", "neg_number": 7, **QUIET}
    model = mix_models_with_data(list(kitchen.values()), "reranker", rows, **options)
    expected = mix_by_hand(kitchen, found.candidate("ensemble").weights)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-6, rtol=1e-5)


def mix_by_hand(kitchen: dict[str, str], weights) -> dict[str, torch.Tensor]:
    states = [load_file(Path(folder) / "model.safetensors") for folder in kitchen.values()]
    return {
        name: sum(w * state[name] for w, state in zip(weights, states, strict=True))
        for name in states[0]
    }


def test_the_candidates_beat_what_they_should(found) -> None:
    loss = {c.name: c.held_out.loss for c in found.candidates}
    assert loss[found.verdict.chosen] < loss["lm-cocktail"]
    assert loss[found.verdict.chosen] < loss["uniform"]


def test_same_seed_same_result_in_any_order_of_examples(found, kitchen, rows) -> None:
    again = search_weights(list(kitchen.values()), "reranker", rows[::-1], **QUIET)
    assert again.weights == found.weights
    for one, other in zip(found.candidates, again.candidates, strict=True):
        if one.name != "lm-cocktail":  # its rule is defined by the order of the data
            assert one.weights == other.weights
            np.testing.assert_array_equal(one.measured.losses, other.measured.losses[::-1])


def test_order_of_ingredients_changes_nothing(found, kitchen, rows) -> None:
    names = list(kitchen.values())
    moved = search_weights([names[i] for i in (2, 0, 1)], "reranker", rows, base=1, **QUIET)
    for name in ("ensemble", "gradient"):
        one, other = found.candidate(name).weights, moved.candidate(name).weights
        np.testing.assert_allclose(one, [other[1], other[2], other[0]], atol=2e-3)


def test_shuffled_labels_make_the_selection_abstain(kitchen, rows) -> None:
    for seed in range(2):
        shuffled = []
        for i, row in enumerate(rows[:12]):
            texts = row["pos"] + row["neg"]
            random.Random(100 * seed + i).shuffle(texts)
            shuffled.append({**row, "pos": texts[:1], "neg": texts[1:]})
        result = search_weights(list(kitchen.values()), "reranker", shuffled, **QUIET)
        assert (result.verdict.chosen, result.verdict.abstained) == ("uniform", True)
        assert result.weights == (1 / 3, 1 / 3, 1 / 3)


def follow(model: torch.nn.Module, rows: list[dict], steps: int) -> None:
    """Teach a decoder which word follows which."""
    task = DecoderTask(read_written(rows), tokenizer("llama"), model, max_length=16)
    [batch] = task.batches(4096)
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(steps):
        optimiser.zero_grad()
        task.forward(model, batch).mean().backward()
        optimiser.step()


def test_outputs_dealt_to_other_inputs_make_the_selection_abstain(tmp_path) -> None:
    rows = [
        {"input": word, "output": after}
        for word, after in zip(WORDS, [*WORDS[1:], WORDS[0]], strict=True)
    ]
    torch.manual_seed(0)
    model = FAMILIES["llama"][1]()
    follow(model, rows, 4)
    names = [save_model(model.eval(), "llama", tmp_path / "base")]
    follow(model, rows, 30)
    names.append(save_model(model.eval(), "llama", tmp_path / "tuned"))
    told = search_weights(names, "decoder", rows, **QUIET)
    assert not told.verdict.abstained
    assert told.weights[1] > 0.9
    outputs = [row["output"] for row in rows]
    random.Random(0).shuffle(outputs)
    rows = [{**row, "output": output} for row, output in zip(rows, outputs, strict=True)]
    untold = search_weights(names, "decoder", rows, **QUIET)
    assert (untold.verdict.chosen, untold.verdict.abstained) == ("uniform", True)
    assert "may as well be labelled at random" in untold.verdict.reason


def test_retain_keeps_the_limit_and_traces_the_frontier(kitchen, rows) -> None:
    retain = ranked(12, negatives=5, seed=77)
    names = [kitchen["base"], kitchen["noise"]]
    result = search_weights(names, "reranker", rows, strategy="lm-cocktail", temperature=50.0,
                            retain_data=retain, max_drop=0.01, **QUIET)  # fmt: skip
    frontier = result.frontier
    assert frontier is not None and frontier.missed_by == 0
    chosen, base = frontier.points[frontier.chosen], frontier.points[0]
    assert base.role == "base"
    assert frontier.limit == pytest.approx(base.retain.mean + 0.01)
    assert chosen.retain.mean <= frontier.limit
    assert {point.role for point in frontier.points} >= {"base", "step", "ingredient"}
    assert result.weights == chosen.weights
    assert result.weights != result.candidate("lm-cocktail").weights
    # The step that crosses the limit was halved: there is a point within the next eightieth.
    over = min(point.weights[1] for point in frontier.points if not frontier.allows(point))
    within = [point.weights[1] for point in frontier.points if point.weights[1] < over]
    assert over - max(within) <= 0.5 / 80 + 1e-9
    impossible = search_weights(names, "reranker", rows, strategy="lm-cocktail",
                                retain_data=retain, max_drop=-9.0, **QUIET)  # fmt: skip
    assert impossible.frontier is not None and impossible.frontier.missed_by > 0


@pytest.mark.parametrize("name", ["base", "prior"])
def test_a_folder_called_as_a_candidate_is_an_ingredient(
    kitchen, rows, tmp_path, monkeypatch, name: str
) -> None:
    options = {"strategy": "lm-cocktail", "retain_data": ranked(12, negatives=5, seed=77), **QUIET}
    shutil.copytree(kitchen["base"], tmp_path / name)
    monkeypatch.chdir(tmp_path)
    models = [kitchen["noise"], name]
    result = search_weights(models, "reranker", rows, max_drop=-9.0, **options)
    assert result.weights == result.frontier.points[result.frontier.chosen].weights
    models[1] = kitchen["base"]
    assert result.weights == search_weights(
        models, "reranker", rows, max_drop=-9.0, **options
    ).weights  # fmt: skip


def test_random_labels_choose_nothing_under_a_limit_either(kitchen, rows) -> None:
    generator = random.Random(3)
    dealt = []
    for row in rows:
        texts = [*row["pos"], *row["neg"]]
        generator.shuffle(texts)
        dealt.append({**row, "pos": texts[:1], "neg": texts[1:]})
    names = [kitchen["base"], kitchen["tuned"], kitchen["noise"]]
    retain = ranked(12, negatives=5, seed=77)
    result = search_weights(names, "reranker", dealt, retain_data=retain, **QUIET)
    assert result.verdict.abstained
    chosen = result.frontier.points[result.frontier.chosen]
    distances = [
        sum(abs(weight - 1 / 3) for weight in point.weights)
        for point in result.frontier.points
        if result.frontier.allows(point)
    ]
    assert sum(abs(weight - 1 / 3) for weight in chosen.weights) == pytest.approx(min(distances))


@pytest.mark.parametrize("strategy", ["ensemble", "gradient"])
def test_every_strategy_gives_what_was_asked_for(kitchen, rows, strategy: str) -> None:
    names = [kitchen["base"], kitchen["noise"]]
    result = search_weights(names, "reranker", rows[:8], strategy=strategy, **QUIET)
    assert result.verdict.chosen == strategy
    assert result.chosen.measured.loss <= result.candidate("uniform").measured.loss + 1e-9
    assert result.forwards <= 60


@pytest.mark.parametrize("family", ["bert-encoder", "tied-llama", "t5"])
def test_auto_runs_on_every_kind(family: str, tmp_path: Path) -> None:
    models = ingredients(family, tmp_path)
    result = search_weights(models, FAMILIES[family][0], examples(family), **QUIET)
    assert sum(result.weights) == pytest.approx(1)
    assert {c.name for c in result.candidates} >= {"base", "uniform", "ensemble", "gradient"}
    # Weights that are found without examples are worth the same held out, on the same candidates.
    for name in ("base", "uniform"):
        assert result.candidate(name).optimism == pytest.approx(0, abs=1e-6)
    json.dumps(result.to_dict(), allow_nan=False)


@pytest.mark.parametrize("budget", [4, 5.5, 7])
@pytest.mark.parametrize("strategy", ["auto", "lm-cocktail", "ensemble"])
def test_a_budget_is_kept_and_said(kitchen, rows, strategy: str, budget: float) -> None:
    """Of texts of very different lengths, too."""
    rows = [{**rows[0], "neg": [text * 6 for text in rows[0]["neg"]]}, *rows[1:]]
    names = list(kitchen.values())
    result = search_weights(names, "reranker", rows, strategy=strategy, budget=budget, **QUIET)
    assert result.forwards <= budget + 1e-9
    assert any("--budget" in note for note in result.notes)
    if strategy == "ensemble" and budget > 5:
        assert result.verdict.chosen == strategy


def test_a_budget_for_less_than_all_models_is_refused(kitchen, rows) -> None:
    for strategy in ("auto", "lm-cocktail"):
        names = [kitchen["base"], kitchen["tuned"]]
        refused(RecipeError, "2 models and their equal mix take 3", names, "reranker", rows,
                strategy=strategy, budget=2)  # fmt: skip


def test_no_mix_is_run_twice(kitchen, rows, monkeypatch) -> None:
    run, ran = Mixture.rows, []

    def counted(self, task, weights, examples=None, **options):
        ran.append((id(task), weights.tobytes(), None if examples is None else tuple(examples)))
        return run(self, task, weights, examples, **options)

    monkeypatch.setattr(Mixture, "rows", counted)
    for count in (2, 3):
        ran.clear()
        search_weights(list(kitchen.values())[:count], "reranker", rows[:4], **QUIET)
        assert len(ran) == len(set(ran))


@pytest.mark.parametrize("evaluations", [0, 2, 5])
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
    if evaluations < 5:  # both ingredients and their average
        with pytest.raises(KeyboardInterrupt):
            search_weights(names, "reranker", rows, strategy="lm-cocktail", **QUIET)
        return
    result = search_weights(names, "reranker", rows, **QUIET)
    assert result.interrupted
    assert result.chosen.measured.loss == min(c.measured.loss for c in result.candidates)


def test_one_model_is_in_memory(kitchen, rows, monkeypatch) -> None:
    """The ingredients are streamed into one model; transformers builds no other."""
    built = []
    original = Mixture.__post_init__
    monkeypatch.setattr(Mixture, "__post_init__", lambda self: built.append(original(self)))
    search_weights(list(kitchen.values()), "reranker", rows[:4], strategy="ensemble", **QUIET)
    assert len(built) == 1


def test_refilling_equals_mixing(kitchen, rows) -> None:
    from cocktail.measure.bench import prepare, search_plan
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
    for given in ({"max_drop": 0.1}, {"retain_by": "metric"}):
        refused(RecipeError, "there are no retain examples", names, "reranker", rows, **given)
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


def test_one_example_gives_valid_json(kitchen, rows) -> None:
    names = [kitchen["base"], kitchen["tuned"]]
    result = search_weights(names, "reranker", rows[:1], retain_data=rows[1:2], **QUIET)
    assert result.verdict.abstained
    json.dumps(result.to_dict(), allow_nan=False)


def test_ctrl_c_in_the_frontier_keeps_the_verdict(kitchen, rows, monkeypatch) -> None:
    def interrupted(*_):
        raise KeyboardInterrupt

    names = [kitchen["base"], kitchen["noise"]]
    whole = search_weights(names, "reranker", rows, **QUIET)
    monkeypatch.setattr("cocktail.search.search.trace", interrupted)
    result = search_weights(names, "reranker", rows, retain_data=rows, **QUIET)
    assert result.interrupted and result.frontier is None
    assert result.weights == whole.weights
    assert "before the limit" in result.verdict.reason


def test_the_bar_moves_with_every_mix_that_runs(kitchen, rows, capsys) -> None:
    names = [kitchen["base"], kitchen["noise"]]
    result = search_weights(names, "reranker", rows, progress=True, device="cpu")
    shown = capsys.readouterr().err
    assert "best loss" in shown
    last = [int(n) for n in re.findall(r"searching: (\d+) mixes", shown)][-1]
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
