"""A search in bfloat16 measures what one in float32 does, to the digits that it keeps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from cocktail.cli.main import main
from cocktail.errors import RecipeError
from cocktail.measure.bench import prepare
from cocktail.measure.refillable import search_plan
from cocktail.search.objective import MixObjective
from cocktail.search.options import SearchOptions
from cocktail.search.run import search_weights
from tests.cocktail.tiny import FAMILIES, examples, ingredients


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradient_are_near(family: str, tmp_path: Path) -> None:
    models = ingredients(family, tmp_path)
    found = {}
    for dtype in ("float32", "bfloat16"):
        plan = search_plan(models, FAMILIES[family][0], dtype=dtype)
        made = prepare(plan, examples(family), None, SearchOptions(), device="cpu")
        parameters = made.mixture.model.parameters()
        assert {parameter.dtype for parameter in parameters} == {getattr(torch, dtype)}
        objective = MixObjective(made.mixture, made.task)
        found[dtype] = objective.value_and_gradient(np.array([0.5, 0.3, 0.2]))
    (loss, slope), (rounded_loss, rounded_slope) = found.values()
    assert rounded_loss != loss
    assert rounded_loss == pytest.approx(loss, rel=0.03)
    # Along the simplex, which is all that a search moves on.
    slope, rounded_slope = slope - slope.mean(), rounded_slope - rounded_slope.mean()
    assert np.linalg.norm(rounded_slope - slope) < 0.15 * np.linalg.norm(slope)


def test_the_command_takes_it_and_says_so(
    kitchen: dict[str, str], data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["search", *kitchen.values(), "--data", str(data), "--compute-dtype"]
    run([*command, "bfloat16"])
    assert "forward equivalents in bfloat16" in capsys.readouterr().out
    losses = []
    for dtype in ("float32", "bfloat16"):
        run([*command, dtype, "--json"])
        result = json.loads(capsys.readouterr().out)
        assert result["compute_dtype"] == dtype
        losses.append([point["loss"]["mean"] for point in result["points"]])
    assert losses[1] == pytest.approx(losses[0], rel=0.03)


def run(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert not ended.value.code


def test_another_dtype_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="'float16' - it must be one of auto, float32, bfloat16"):
        search_weights(
            ingredients("llama", tmp_path), "decoder", examples("llama"), compute_dtype="float16"
        )
