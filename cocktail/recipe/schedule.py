"""Parameters that change from tensor to tensor: gradients over the layers, filters by name.

They follow mergekit's YAML: a value, a list of values spread evenly over the layers, or a list of
``filter`` and ``value``, of which the first whose filter the tensor's name contains applies.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from cocktail.errors import RecipeError, listed
from cocktail.methods.method import Option

Setting = Any
"""A scalar, a list of scalars, ``{"filter", "value"}``, or a list of these."""

_LAYER = re.compile(r"^(?P<stack>(?:.*?\.)?)(?P<number>\d+)\.")
_BEFORE_THE_LAYERS = re.compile(r"embed|wte|wpe|(^|\.)shared\.")


def checked_setting(option: Option, setting: Setting) -> Setting:
    """The setting with every scalar in the option's type.

    Raises:
        RecipeError: a scalar has the wrong type or is out of range, or the form is unknown.
    """
    if isinstance(setting, Mapping):
        return [_checked_condition(option, setting)]
    if not isinstance(setting, list):
        return option.check(setting)
    if not setting:
        raise RecipeError(f"{option.name} is an empty list - a gradient needs values - add some")
    if any(isinstance(item, Mapping) for item in setting):
        return [_checked_condition(option, item) for item in setting]
    return [option.check(item) for item in setting]


def _checked_condition(option: Option, item: Any) -> dict[str, Any]:
    if not isinstance(item, Mapping) or "value" not in item or set(item) - {"filter", "value"}:
        raise RecipeError(
            f"{option.name} holds {item!r} - in a list with filters, every item must be a map of "
            "filter and value - correct it"
        )
    values = item["value"]
    checked = (
        [option.check(value) for value in values]
        if isinstance(values, list) and values
        else option.check(values)
    )
    return {"filter": None if item.get("filter") is None else str(item["filter"]), "value": checked}


def value_at(setting: Setting, tensor: str, depth: float) -> Any:
    """The value of a checked setting for one tensor; ``None`` where no filter fits.

    Args:
        tensor: its name.
        depth: 0 at the first layer, 1 at the last; numbers are interpolated, others are not.
    """
    if not isinstance(setting, list):
        return setting
    if isinstance(setting[0], Mapping):
        for item in setting:
            if item["filter"] in (None, "*") or item["filter"] in tensor:
                return value_at(item["value"], tensor, depth)
        return None
    place = depth * (len(setting) - 1)
    low = int(place)
    if isinstance(setting[0], bool | str):
        return setting[low]
    high = min(len(setting) - 1, low + 1)
    value = setting[low] + (place - low) * (setting[high] - setting[low])
    return round(value) if isinstance(setting[0], int) else value


def unmatched_filters(setting: Setting, names: Iterable[str]) -> list[str]:
    """The filters that no name contains, which are most likely misspelt."""
    names = list(names)
    items = setting if isinstance(setting, list) else [setting]
    filters = [item.get("filter") for item in items if isinstance(item, Mapping)]
    return [
        text
        for text in filters
        if text not in (None, "*") and not any(str(text) in name for name in names)
    ]


def layer_depths(names: Iterable[str]) -> dict[str, float]:
    """The depth of each tensor: 0 in the first layer of its stack, 1 in the last.

    As in mergekit, tensors outside the layers are at 0, and a stack of one layer is at 1.
    """
    names = list(names)
    places = {name: _LAYER.match(name) for name in names}
    counts: dict[str, int] = {}
    for match in filter(None, places.values()):
        counts[match["stack"]] = max(counts.get(match["stack"], 0), int(match["number"]))
    return {
        name: 0.0
        if match is None
        else 1.0
        if counts[match["stack"]] == 0
        else int(match["number"]) / counts[match["stack"]]
        for name, match in places.items()
    }


def lines_depth(name: str, depths: Mapping[str, float]) -> float:
    """The depth for LiNeS, with the embeddings before all layers and the head after them."""
    if _LAYER.match(name):
        return depths[name]
    return 0.0 if _BEFORE_THE_LAYERS.search(name) else 1.0


def known_options(names: Iterable[str], given: Iterable[str], method: str) -> None:
    """Refuse parameters that a method does not have.

    Raises:
        RecipeError: naming them and those that it has.
    """
    known = list(names)
    unknown = [str(name) for name in given if name not in known]
    if unknown:
        raise RecipeError(
            f"{method} has no parameter {listed(unknown)} - its parameters are "
            f"{', '.join(known) or 'none'} - correct it, see `cocktail methods {method}`"
        )
