"""The recipe: everything a mix depends on; ``yaml_file`` reads it from YAML."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import Any, Literal

import yaml

from cocktail.checkpoint.folder import local_folder
from cocktail.errors import RecipeError, listed
from cocktail.methods.method import LINES, WEIGHT, Method, Option
from cocktail.methods.registry import method_named, option_names
from cocktail.numbers import cancel, exact_sum, plain, read_weights
from cocktail.recipe.schedule import checked_setting, known_options, lines_depth, value_at
from cocktail.tensors.dtypes import parse_dtype, torch_name

HeadRule = Literal["error", "copy", "mix", "drop"]
PoolingMode = Literal["cls", "mean", "max", "lasttoken"]


@dataclass(frozen=True)
class Recipe:
    """What goes into a mix, and how it is mixed.

    Attributes:
        models: references, each a local folder or a Hub id ``org/name[@revision]``. Config and
            tokenizer come from the base if there is one, or else from the first model.
        weights: one for each merged model, or none if the parameters give them.
        model_type: ``reranker``, ``encoder``, ``decoder``, ``encoder-decoder``, or ``None`` to
            read it from the config.
        dtype: safetensors code of the output, or ``None`` to keep the ingredients' own.
        head: what to do with a head that only some ingredients have: refuse, copy it from its only
            owner, average it over its owners, or leave it out.
        pooling: the pooling of sentence-transformers modules to add if the first ingredient has
            none.
        merge_method: name of the method; see ``cocktail methods``.
        base_model: what the others were fine-tuned from; may be one of the models.
        parameters: the method's, for all models; each a scalar, a gradient or a list of filters.
        model_parameters: those of each model; they override ``parameters``.
        tokenizer_source: where the tokenizer's files come from, if not from the donor: an
            ingredient, another folder or Hub id, or ``union`` for the one that holds all tokens.
        chat_template: text of a template for the mix, or ``auto`` for the one that most models
            have.
        accept_config: keys of ``config.json`` that may differ; the donor's value is taken.
        layers: how many layers each model must have, where the recipe says.
        seed: for methods that draw at random.
        data: JSONL file of the examples that a method with a statistic measures the models on.
        name: what later recipes call the result.
        steps: earlier recipes whose results, by name, are among the models.
    """

    models: tuple[str, ...]
    weights: tuple[float, ...]
    model_type: str | None = None
    dtype: str | None = None
    head: HeadRule = "error"
    pooling: PoolingMode | None = None
    merge_method: str = "linear"
    base_model: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    model_parameters: tuple[Mapping[str, Any], ...] = ()
    tokenizer_source: str | None = None
    seed: int = 0
    name: str | None = None
    data: str | None = None
    chat_template: str | None = None
    accept_config: tuple[str, ...] = ()
    layers: int | None = None
    steps: tuple[Recipe, ...] = ()

    @cached_property
    def method(self) -> Method:
        """The method of this name.

        Raises:
            RecipeError: there is none.
        """
        return method_named(self.merge_method)

    @property
    def ingredients(self) -> tuple[str, ...]:
        """Every checkpoint that is read: the models, then the base unless it is one of them."""
        if self.base_model is None or self.base_model in self.models:
            return self.models
        return (*self.models, self.base_model)

    @property
    def base_index(self) -> int | None:
        """Which of the ingredients is the base."""
        return None if self.base_model is None else self.ingredients.index(self.base_model)

    @property
    def merged(self) -> list[int]:
        """The ingredients that the method combines: without the base if it has a separate role."""
        base = None if self.method.base == "ingredient" else self.base_index
        return [i for i in range(len(self.ingredients)) if i != base]

    def weight_of(self, ingredient: int) -> Any:
        """An ingredient's weight for a table: a number, the parameter that sets it, ``base``,
        or ``None`` where the method takes no weights."""
        if ingredient not in self.merged:
            return "base"
        if self.weights:
            return self.weights[self.merged.index(ingredient)]
        own = self.model_parameters[ingredient : ingredient + 1]
        default = {option.name: option.default for option in self.method.options}.get("weight")
        return {**self.parameters, **(own[0] if own else {})}.get("weight", default)

    @property
    def is_weighted_sum(self) -> bool:
        """Whether the mix is sum_i w_i theta_i, which the engine adds up block by block."""
        return self.merge_method == "linear"

    def normalized(self) -> Recipe:
        """The same recipe with the weights divided by their sum.

        Raises:
            RecipeError: the sum is zero or not finite.
        """
        total = exact_sum(self.weights)
        if cancel(self.weights):
            raise RecipeError(
                f"the weights sum to {total:g} - only a finite sum other than zero can be "
                "normalised - give other weights"
            )
        return replace(self, weights=tuple(weight / total for weight in self.weights))

    def options(self) -> tuple[Option, ...]:
        """Every option that the parameters may set."""
        method = self.method
        scaled = any(option.name == "lambda" for option in method.options)
        weight = (WEIGHT,) if method.weighted else ()
        return (*weight, *method.options, *(LINES if scaled else ()))

    def check_parameters(self) -> None:
        """Check names, types and ranges of all parameters.

        Raises:
            RecipeError: naming the first that is wrong.
        """
        known = {option.name: option for option in self.options()}
        for parameters in (self.parameters, *self.model_parameters):
            own = [name for name in parameters if name not in self._unused(known)]
            known_options(known, own, self.merge_method)
            for name in own:
                checked_setting(known[name], parameters[name])
        if self.weights and any(
            "weight" in parameters for parameters in (self.parameters, *self.model_parameters)
        ):
            raise RecipeError(
                "weights are given twice, as weights and as parameters - only one may be given - "
                "leave the others out"
            )

    def _unused(self, known: Iterable[str]) -> list[str]:
        """The given parameters that other methods have and this one does not."""
        given = dict.fromkeys(
            name for parameters in (self.parameters, *self.model_parameters) for name in parameters
        )
        return [name for name in given if name in option_names() and name not in known]

    def notes(self) -> list[str]:
        """The parts of the recipe that have no effect, one line each."""
        unused = self._unused([option.name for option in self.options()])
        if not unused:
            return []
        return [f"{self.merge_method} does not use {listed(unused)}; ignored"]

    def for_tensor(
        self, name: str, depths: Mapping[str, float]
    ) -> tuple[tuple[float, ...], dict[str, Any]]:
        """Weights and options of one tensor.

        Args:
            depths: those of all tensors, see ``cocktail.recipe.schedule.layer_depths``.

        Returns:
            One weight for each merged ingredient, and the method's options; those that differ by
            model are tuples in the same order.

        Raises:
            RecipeError: no weight is given for it, or they cannot be divided by their sum.
        """
        values: dict[str, Any] = {}
        for option in self.options():
            if option.per_model:
                each = [self._value(option, name, depths[name], i) for i in self.merged]
                values[option.name] = tuple(each)
            else:
                values[option.name] = self._value(option, name, depths[name], None)
        weights = self.weights or values.pop("weight", ())
        values.pop("weight", None)
        if "lines_alpha" in values:
            depth = lines_depth(name, depths)
            values["lambda"] *= values.pop("lines_alpha") + values.pop("lines_beta") * depth
        if self.is_weighted_sum:
            normalize = values.pop("normalize")
            if normalize and not self.weights:
                total = exact_sum(weights)
                if cancel(weights):
                    raise RecipeError(
                        f"the weights of {name} sum to {total:g} - they are divided by their sum - "
                        "give others, or normalize: false"
                    )
                weights = tuple(weight / total for weight in weights)
        if self.method.statistic is not None and not any(weights):
            raise RecipeError(
                f"the weights of {name} are all 0 - they are divided by their sum - give others"
            )
        return weights, values

    def _value(self, option: Option, name: str, depth: float, ingredient: int | None) -> Any:
        chain = [self.parameters]
        if ingredient is not None and ingredient < len(self.model_parameters):
            chain.insert(0, self.model_parameters[ingredient])
        for parameters in chain:
            if option.name in parameters:
                value = value_at(checked_setting(option, parameters[option.name]), name, depth)
                if value is not None:
                    return value
        if option.default is None and not (option is WEIGHT and self.weights):
            who = "" if ingredient is None else f" of {self.ingredients[ingredient]}"
            raise RecipeError(
                f"{name}{who} has no {option.name} - {self.merge_method} needs one for every "
                "tensor - give it, or add an item without a filter"
            )
        return option.default

    def to_dict(self) -> dict[str, Any]:
        """Plain values, without defaults; ``yaml_file`` reads them back."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        defaults = {f.name: f.default for f in fields(self)} | {"parameters": {}, "weights": ()}
        values = {key: value for key, value in values.items() if value != defaults[key]}
        values.pop("steps", None)
        values["models"] = list(self.models)
        if self.accept_config:
            values["accept_config"] = list(self.accept_config)
        parameters = values.pop("model_parameters", ())
        if any(parameters):
            values["models"] = [
                {"model": model, "parameters": dict(given)} if given else {"model": model}
                for model, given in zip(self.models, parameters, strict=True)
            ]
        if self.weights:
            values["weights"] = list(self.weights)
        if self.dtype is not None:
            values["dtype"] = torch_name(self.dtype)
        return values

    def to_yaml(self) -> str:
        """The recipe as a file, with the steps that it builds on before it."""
        documents = [recipe.to_dict() for recipe in (*self.steps, self)]
        return yaml.safe_dump_all(documents, sort_keys=False, allow_unicode=True)


def recipe_of(settings: Mapping[str, Any]) -> Recipe:
    """Build a recipe from what ``yaml_file`` read, ignoring what is not part of it.

    Raises:
        RecipeError: as :func:`make_recipe`.
    """
    known = signature(make_recipe).parameters
    given = {key: value for key, value in settings.items() if key in known and value is not None}
    return make_recipe(**{"models": (), "weights": None, **given})


def make_recipe(
    models: Sequence[str | Path],
    weights: Sequence[float] | None,
    *,
    model_type: str | None = None,
    dtype: Any = None,
    head: str = "error",
    pooling: str | None = None,
    normalize: bool = False,
    merge_method: str = "linear",
    base_model: str | Path | None = None,
    parameters: Mapping[str, Any] | None = None,
    model_parameters: Sequence[Mapping[str, Any]] = (),
    tokenizer_source: str | None = None,
    seed: int = 0,
    name: str | None = None,
    data: str | Path | None = None,
    chat_template: str | None = None,
    accept_config: Sequence[str] = (),
    layers: int | None = None,
) -> Recipe:
    """Build a recipe from what a user passed.

    Raises:
        RecipeError: something has the wrong type, the dtype is unknown, or the weights cannot be
            normalised.
    """
    if isinstance(models, str | Path) or not isinstance(models, Iterable):
        raise RecipeError(
            f"models are {models!r} - they must be a list of folders or Hub ids - correct them"
        )
    for key, text in (
        ("model_type", model_type), ("merge_method", merge_method), ("name", name),
        ("tokenizer_source", tokenizer_source), ("chat_template", chat_template),
    ):  # fmt: skip
        if text is not None and not isinstance(text, str):
            raise RecipeError(f"{key} is {text!r} - it must be text - correct it")
    if not isinstance(parameters, Mapping | None):
        raise RecipeError(
            f"parameters are {parameters!r} - they must be a map such as {{'density': 0.5}} - "
            "correct them"
        )
    seed = plain(seed)
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise RecipeError(f"seed is {seed!r} - it must be a whole number - correct it")
    if isinstance(accept_config, str) or not all(isinstance(key, str) for key in accept_config):
        raise RecipeError(
            f"accept_config is {accept_config!r} - it must be a list of keys of config.json - "
            "correct it"
        )
    names = tuple(str(model) for model in models)
    recipe = Recipe(
        names,
        read_weights(weights),
        model_type,
        parse_dtype(dtype),
        head,  # type: ignore[arg-type]  # checked by problems(), with all others
        pooling,  # type: ignore[arg-type]
        merge_method,
        _as_named(base_model, names),
        plain(parameters or {}),
        tuple(plain(given) for given in model_parameters),
        _as_named(tokenizer_source, (*names, *filter(None, [_as_named(base_model, names)]))),
        seed,
        name,
        None if data is None else str(data),
        chat_template,
        tuple(accept_config),
        layers,
    )
    return _normalized(recipe) if normalize else recipe


def _normalized(recipe: Recipe) -> Recipe:
    """Divide the weights by their sum, or let the method do so where they are parameters."""
    if recipe.weights:
        return recipe.normalized()
    if not any(option.name == "normalize" for option in recipe.options()):
        return recipe
    return replace(recipe, parameters={"normalize": True, **recipe.parameters})


def _as_named(reference: str | Path | None, names: Sequence[str]) -> str | None:
    """The one of ``names`` for the same folder, however spelt: ``base`` for ``./base``."""
    if reference is None or str(reference) in names:
        return None if reference is None else str(reference)
    folder = local_folder(str(reference))
    if folder is not None:
        for name in names:
            other = local_folder(name)
            if other is not None and os.path.realpath(other) == os.path.realpath(folder):
                return name
    return str(reference)
