"""Parameters by layer and by name: values worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from cocktail.errors import RecipeError
from cocktail.methods.method import Option
from cocktail.recipe.schedule import (
    checked_setting,
    known_options,
    layer_depths,
    lines_depth,
    unmatched_filters,
    value_at,
)

NUMBER = Option("t", 0.5, "", 0, 1)
WHOLE = Option("steps", 3, "", 0)
SWITCH = Option("flat", True, "")


@pytest.mark.parametrize(
    ("setting", "depth", "value"),
    [
        (0.25, 0.7, 0.25),
        ([0, 1], 0.25, 0.25),
        ([0, 1, 0], 0.75, 0.5),
        ([0.5, 1], 1.0, 1.0),
        ([0.3], 1.0, 0.3),
    ],
)
def test_a_gradient_is_spread_evenly(setting: Any, depth: float, value: float) -> None:
    assert value_at(checked_setting(NUMBER, setting), "x", depth) == pytest.approx(value)


def test_whole_numbers_are_rounded_and_switches_are_not_mixed() -> None:
    assert value_at(checked_setting(WHOLE, [0, 3]), "x", 0.5) == 2
    assert [value_at([True, False], "x", depth) for depth in (0.0, 0.9, 1.0)] == [True, True, False]


def test_the_first_filter_that_fits_counts() -> None:
    setting = checked_setting(
        NUMBER, [{"filter": "mlp", "value": [0, 1]}, {"filter": "m", "value": 0.1}, {"value": 0.2}]
    )
    assert value_at(setting, "layers.0.mlp.w", 0.5) == 0.5
    assert value_at(setting, "layers.0.norm.w", 0.5) == 0.1
    assert value_at(setting, "layers.0.attn.w", 0.5) == 0.2
    assert value_at(setting[:1], "layers.0.attn.w", 0.5) is None
    assert unmatched_filters(setting, ["layers.0.norm.w"]) == ["mlp"]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ([], "is an empty list"),
        ([0.5, 2], "from 0 to 1"),
        ([{"filter": "a", "value": 0.1}, 0.2], "every item must be a map"),
        ({"filter": "a"}, "every item must be a map"),
        ({"value": 0.1, "fliter": "a"}, "every item must be a map"),
    ],
)
def test_settings_that_are_none(setting: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        checked_setting(NUMBER, setting)


def test_depths_of_two_stacks() -> None:
    names = ["embed.w", "encoder.layers.0.w", "encoder.layers.4.w", "decoder.layers.0.w", "head.w"]
    names += ["encoder.layers.1.w", "decoder.layers.2.w", "decoder.layers.1.w"]
    found = layer_depths(names)
    assert found["encoder.layers.1.w"] == 0.25
    assert found["decoder.layers.1.w"] == 0.5
    assert (found["embed.w"], found["head.w"], found["decoder.layers.2.w"]) == (0, 0, 1)
    assert layer_depths(["only.0.w"]) == {"only.0.w": 1.0}
    assert [lines_depth(n, found) for n in ("embed.w", "head.w", "encoder.layers.1.w")] == [
        0,
        1,
        0.25,
    ]


def test_unknown_parameters_are_named_with_what_there_is() -> None:
    known_options(["t", "k"], ["t"], "slerp")
    with pytest.raises(RecipeError, match="slerp has no parameter q - its parameters are t, k"):
        known_options(["t", "k"], ["q"], "slerp")
