"""Recipes in YAML, our own or mergekit's where supported, and those in the records of mixes."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from cocktail.errors import RecipeError, listed
from cocktail.numbers import is_number, plain_number
from cocktail.recipe.slices import whole_slices

RECIPE_FILE = "cocktail.yaml"

_KEYS: Mapping[str, tuple[type | tuple[type, ...], str]] = {
    "models": (list, "a list of folders or Hub ids, or of maps with model and parameters"),
    "weights": (list, "a list of numbers"),
    "model_type": (str, "a name"),
    "output": (str, "a path"),
    "dtype": (str, "a name such as bfloat16"),
    "out_dtype": (str, "a name such as bfloat16"),
    "head": (str, "error, copy, mix or drop"),
    "pooling": (str, "cls, mean, max or lasttoken"),
    "normalize": (bool, "true or false"),
    "max_shard_size": ((str, int), "a size such as 5GB"),
    "merge_method": (str, "a name, see `cocktail methods`"),
    "base_model": (str, "a folder or a Hub id"),
    "parameters": (dict, "a map of the method's parameters"),
    "tokenizer_source": (str, "base, union, one of the models, or another folder or Hub id"),
    "tokenizer": (dict, "a map with source"),
    "chat_template": (str, "auto, chatml, or the text of a Jinja template"),
    "slices": (list, "a list of maps with sources"),
    "accept_config": (list, "a list of keys of config.json"),
    "layers": (int, "a whole number"),
    "seed": (int, "a whole number"),
    "data": (str, "a JSONL file of examples"),
    "name": (str, "a name that later documents call the result by"),
}
# mergekit's keys that have no meaning or no use in merging whole models.
_UNSUPPORTED = {
    "modules": "parts of a model merged by different recipes",
    "gate_mode": "a mixture of experts",
    "experts": "a mixture of experts",
}


def read_recipe(path: Path) -> dict[str, Any]:
    """Read a file that holds one recipe; every key is optional.

    Returns:
        Plain values, checked for type, under the names that ``make_recipe`` takes, with
        ``output``, ``max_shard_size``, ``normalize`` and ``name`` beside them. Relative paths stay
        relative to the current folder.

    Raises:
        RecipeError: the file cannot be read, holds no YAML map or more than one, or has an unknown
            or misused key.
    """
    recipes = read_recipes(path)
    if len(recipes) > 1:
        raise RecipeError(
            f"{path}: holds {len(recipes)} documents - this command takes a single recipe - pass "
            "the file to `cocktail mix` to run all of them"
        )
    return recipes[0]


def read_recipes(path: Path) -> list[dict[str, Any]]:
    """Read every document of a file; see ``read_recipe``.

    Later documents may use the ``name`` of earlier ones as a model. A ``.json`` file is the record
    of a mix (``cocktail.json``), whose recipe is run again.
    """
    kind, read = ("JSON", _recorded) if path.suffix == ".json" else ("YAML", _documents)
    try:
        documents = list(read(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise RecipeError(f"{path}: is not valid {kind} ({reason})") from None
    except LookupError:
        raise RecipeError(
            f"{path}: holds no recipe - a .json file must be the record of a mix - name a "
            "cocktail.json"
        ) from None
    recipes = [_recipe(path, document) for document in documents or [None] if document != {}]
    return in_order(path, recipes) or [{}]


def in_order(path: Path, recipes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Put every recipe after those whose results it uses, whatever the order of the documents.

    The recipe that no other uses comes last.

    Raises:
        RecipeError: some use each other's results in a circle.
    """
    names = {recipe["name"]: i for i, recipe in enumerate(recipes) if recipe.get("name")}
    if len(names) < len([recipe for recipe in recipes if recipe.get("name")]):
        return recipes  # the pipeline reports the duplicate name
    uses = [
        {names[m] for m in (*recipe.get("models", ()), recipe.get("base_model")) if m in names}
        for recipe in recipes
    ]
    used = set().union(*uses)
    ordered: list[int] = []
    waiting = sorted(range(len(recipes)), key=lambda i: (i not in used, i))
    while waiting:
        ready = next((i for i in waiting if uses[i] <= set(ordered)), None)
        if ready is None:
            shown = [str(recipes[i].get("name")) for i in waiting]
            raise RecipeError(
                f"{path}: the recipes {listed(shown)} use each other's results in a circle - one "
                "must come first - correct their models"
            )
        ordered.append(ready)
        waiting.remove(ready)
    return [recipes[i] for i in ordered]


class _Loader(yaml.SafeLoader):
    """Refuses a duplicate key in a map, where YAML silently takes the last."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = [key for i, key in enumerate(keys) if key in keys[:i]]
        if twice:
            raise yaml.constructor.ConstructorError(
                problem=f"{twice[0]!r} is given twice in one map", problem_mark=node.start_mark
            )
        return node


def _documents(text: str) -> Iterator[Any]:
    for document in yaml.load_all(text, Loader=_Loader):
        _require_finite(document, [])
        yield document


def _require_finite(value: Any, above: list[int]) -> None:
    """Refuse a value that contains itself through an alias, as walking it would never end."""
    if id(value) in above:
        raise ValueError("an alias lies inside its own anchor - the value would be endless")
    if isinstance(value, dict | list):
        for item in (*value, *value.values()) if isinstance(value, dict) else value:
            _require_finite(item, [*above, id(value)])


def _recorded(text: str) -> list[Any]:
    """The documents of a record; raises LookupError if it is not one."""
    record = json.loads(text)
    steps = record.get("steps", []) if isinstance(record, dict) else None
    if not isinstance(steps, list):
        raise LookupError
    return [*steps, record["recipe"]]


def _recipe(path: Path, values: Any) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise RecipeError(
            f"{path}: is not a map - a recipe must have keys such as models and weights - see "
            "docs/mix.md"
        )
    for key, value in values.items():
        _check_key(path, key, _KEYS)
        kind, meaning = _KEYS[key]
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise RecipeError(f"{path}: {key} is {value!r} - it must be {meaning}")
    recipe = dict(values)
    if "slices" in recipe:
        recipe |= whole_slices(path, recipe)
    if "tokenizer" in recipe:
        recipe["tokenizer_source"] = _tokenizer(path, recipe)
    if "weights" in recipe:
        recipe["weights"] = [_number(path, weight) for weight in recipe["weights"]]
    if "models" in recipe:
        models = [_model(path, model) for model in recipe["models"]]
        recipe["models"] = [name for name, _ in models]
        if any(parameters for _, parameters in models):
            recipe["model_parameters"] = [parameters for _, parameters in models]
    if "out_dtype" in recipe:
        # We compute in fp32 whatever `dtype` says; it only decides what is written.
        recipe["dtype"] = recipe.pop("out_dtype")
    if recipe.get("tokenizer_source") == "base":
        recipe["tokenizer_source"] = recipe.get("base_model")
    for key in ("slices", "tokenizer"):
        recipe.pop(key, None)
    return recipe


def _tokenizer(path: Path, recipe: Mapping[str, Any]) -> str:
    """The source in mergekit's ``tokenizer`` map."""
    value = recipe["tokenizer"]
    if recipe.get("tokenizer_source") is not None:
        raise RecipeError(
            f"{path}: has tokenizer and tokenizer_source - both name the tokenizer - leave one out"
        )
    for key in ("tokens", "pad_to_multiple_of"):
        if value.get(key):
            raise RecipeError(
                f"{path}: tokenizer has {key} - rows of the embedding are aligned by token or "
                "taken as they are, never made up or moved - leave it out, or use mergekit for it"
            )
    for key in value:
        _check_key(path, key, {"source": None, "tokens": None, "pad_to_multiple_of": None})
    source = value.get("source", "union")
    if not isinstance(source, str):
        raise RecipeError(
            f"{path}: tokenizer's source is {source!r} - it must be base, union, a model or a "
            "folder - correct it"
        )
    return source


def _check_key(path: Path, key: object, known: Mapping[str, Any]) -> None:
    if key in known:
        return
    if key in _UNSUPPORTED:
        raise RecipeError(
            f"{path}: {key} ({_UNSUPPORTED[str(key)]}) is not supported - whole models are merged "
            "tensor by tensor - leave it out, or use mergekit for it"
        )
    near = difflib.get_close_matches(str(key), known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known keys are {', '.join(known)}"
    raise RecipeError(f"{path}: unknown key {key!r} - {hint}")


def _model(path: Path, model: Any) -> tuple[str, dict[str, Any]]:
    """The reference and parameters of an item of ``models``."""
    if not isinstance(model, dict):
        return str(model), {}
    for key in model:
        _check_key(path, key, {"model": None, "parameters": None})
    name, parameters = model.get("model"), model.get("parameters") or {}
    if not isinstance(name, str) or not isinstance(parameters, dict):
        found = [f"{key}: {value!r}" for key, value in model.items()]
        raise RecipeError(
            f"{path}: models holds {listed(found)} - an item must be a folder or Hub id, or a map "
            "with model and parameters - correct it"
        )
    return name, parameters


def _number(path: Path, value: object) -> float:
    if not is_number(value):
        raise RecipeError(
            f"{path}: weights holds {value!r:.60} - every weight must be a number - correct it"
        )
    return plain_number(value)
