"""The ``cocktail mix`` command: parses, calls, prints."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cocktail.cli.printing import json_option, private_option, push_option, quiet_option, report
from cocktail.errors import RecipeError

if TYPE_CHECKING:
    from cocktail.plan.plan import Plan
    from cocktail.recipe.recipe import Recipe

_STARTED = time.perf_counter()
_MOVED_SCALE = (
    "mixing moves the scale of a reranker's scores: a threshold that held for one of the models "
    "does not hold for the mix; `reranker-ft calibrate` makes its scores probabilities"
)


class _SpacedWeights(click.Command):
    """Lets one option take any number of numbers: ``--weights 0.5 0.5``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        joined: list[str] = []
        numbers: list[str] | None = None
        for argument in args:
            if numbers is not None and _is_numbers(argument):
                numbers.append(argument)
                continue
            if numbers:
                joined.append(",".join(numbers))
            name, equals, value = argument.partition("=")
            numbers = None
            if name == "--weights":
                numbers, argument = [value] if equals else [], name
            joined.append(argument)
        if numbers:
            joined.append(",".join(numbers))
        return super().parse_args(ctx, joined)


def _is_numbers(argument: str) -> bool:
    try:
        return bool([float(number) for number in argument.split(",") if number])
    except ValueError:
        return False


def _parse_weights(
    ctx: click.Context, option: click.Parameter, value: str | None
) -> list[float] | None:
    if value is None:
        return None
    try:
        return [float(number) for number in value.split(",") if number.strip()]
    except ValueError:
        raise click.BadParameter(
            f"{value!r} is not a list of numbers - write them with spaces or commas: 0.5 0.5"
        ) from None


def _parse_parameters(
    ctx: click.Context, option: click.Parameter, values: tuple[str, ...]
) -> dict[str, Any] | None:
    import yaml

    parameters = {}
    for value in values:
        name, equals, text = value.partition("=")
        if not (name and equals):
            raise click.BadParameter(f"{value!r} is not NAME=VALUE - write it like density=0.5")
        try:
            parameters[name] = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, RecursionError):
            raise click.BadParameter(
                f"{text!r:.60} is not a value - write it like density=0.5"
            ) from None
    return parameters or None


@click.command(cls=_SpacedWeights)
@click.argument("models", nargs=-1, metavar="MODEL...")
@click.option(
    "--weights",
    callback=_parse_weights,
    metavar="W W...",
    help="One number for each model, in the same order; they must sum to 1.",
)
@click.option("--normalize", is_flag=True, default=None, help="Divide the weights by their sum.")
@click.option("--output", "-o", metavar="DIR", help="Folder to write the mixed model to.")
@click.option("--method", "merge_method", metavar="NAME",
              help="How to merge; see `cocktail methods`.  [linear]")  # fmt: skip
@click.option("--base", "base_model", metavar="MODEL",
              help="What the models were fine-tuned from, for methods that need it.")  # fmt: skip
@click.option("--parameter", "parameters", multiple=True, metavar="NAME=VALUE",
              callback=_parse_parameters,
              help="A parameter of the method, such as density=0.5; repeatable.")  # fmt: skip
@click.option("--data", metavar="FILE",
              help="JSONL file of examples, for methods that weigh models by them.")  # fmt: skip
@click.option("--seed", type=int, help="Seed for methods that draw at random.  [0]")
@click.option(
    "--model-type",
    metavar="KIND",
    help="reranker, encoder, decoder, encoder-decoder, ...  [read from the config]",
)
@click.option("--dtype", help="float32, bfloat16 or float16.  [as the models are]")
@click.option("--max-shard-size", metavar="SIZE", help="Largest file, such as 500MB.  [5GB]")
@click.option(
    "--head",
    type=click.Choice(["error", "copy", "mix", "drop"]),
    help="For a head that only some models have: refuse it, copy it from its only owner, average "
    "it over its owners, or leave it out.  [error]",
)
@click.option(
    "--pooling",
    type=click.Choice(["cls", "mean", "max", "lasttoken"]),
    help="Write a sentence-transformers folder with this pooling if the first model is not one.",
)
@click.option(
    "--accept-config",
    multiple=True,
    metavar="KEY",
    help="A key of config.json in which the models may differ; repeatable.",
)
@click.option("--overwrite", is_flag=True, help="Replace an existing model at the output.")
@click.option("--no-sync", is_flag=True, help="Do not wait for the disk before the rename.")
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    help="How many threads, or processes, to mix with.  [one per processor]",
)
@click.option("--dry-run", is_flag=True, help="Check everything, print the plan, write nothing.")
@push_option
@private_option
@quiet_option
@json_option
def mix(
    models: tuple[str, ...],
    as_json: bool,
    quiet: bool,
    push_to_hub: str | None,
    private: bool,
    **given: Any,
) -> None:
    """Mix the weights of MODEL... and write a complete model.

    A MODEL is a local folder, a Hub id org/name[@revision], or a LoRA adapter. Config and tokenizer
    come from the base, or else from the first MODEL; from a first MODEL that is a reranker, if the
    base is a plain language model. Instead of models, give one YAML file (a recipe for cocktail or
    mergekit), or the cocktail.json of a mix to run it again. If no MODEL is named, cocktail.yaml in
    the current folder supplies whatever the command line leaves out.

    \b
    Examples:
      cocktail mix ./base ./fine-tuned --weights 0.5 0.5 --output ./mixed
      cocktail mix --weights 0.5 0.5          # models and output from cocktail.yaml
      cocktail mix BAAI/bge-reranker-base ./fine-tuned --weights 0.3,0.7 -o ./mixed --dry-run
      cocktail mix ./one ./other --base ./base --method ties --weights 1 1 \\
        --parameter density=0.3 -o ./mixed
      cocktail mix ./one ./other --method fisher --data examples.jsonl -o ./mixed
      cocktail mix recipe.yaml --output ./mixed
      cocktail mix ./mixed/cocktail.json --output ./again
      cocktail mix ./base ./fine-tuned --weights 0.5 0.5 -o ./mixed --push-to-hub me/mixed
    """
    from cocktail.pipeline import checked_plan, mix_recipe
    from cocktail.system.threads import default_threads
    from cocktail.write.place import output_folder
    from cocktail.write.push import check_push, push

    recipe, settings = _recipe(models, given)
    output = None if settings["output"] is None else output_folder(settings["output"])
    if output is None and not given["dry_run"]:
        raise RecipeError("no output given - a mix must be written to a folder - pass --output DIR")
    size = settings["max_shard_size"] or "5GB"
    threads = given["threads"] or default_threads()
    if output is None or given["dry_run"]:
        if recipe.steps:
            raise RecipeError(
                f"a recipe in {len(recipe.steps) + 1} steps has no dry run - its last step can be "
                "planned only after the others are done - run it, or each document by itself"
            )
        plan = checked_plan(recipe, output, max_shard_size=size, overwrite=given["overwrite"])
        summary = _plan_summary(plan, output, threads)
        report(summary, _plan_text(summary), as_json, quiet=False)
        return
    if push_to_hub is not None:
        check_push(push_to_hub)
    done = mix_recipe(
        recipe, output, max_shard_size=size, overwrite=given["overwrite"],
        sync=not given["no_sync"], threads=given["threads"], progress=not quiet,
    )  # fmt: skip
    plan = done.plan
    seconds = {key: round(value, 3) for key, value in done.seconds.items()}
    seconds["process"] = round(time.perf_counter() - _STARTED, 3)
    result = {**_plan_summary(plan, output, threads), "digest": done.digest, "seconds": seconds}
    text = (
        f"{output}: {plan.parameters / 1e6:.1f} M parameters, {plan.output_bytes / 1e6:.1f} MB, "
        f"mixed from {len(plan.ingredients)} models in {done.seconds['total']:.2f} s"
    )
    lines = [*(f"note: {note}" for note in result["notes"]), text]
    if push_to_hub is not None:
        result["hub"] = push(output, push_to_hub, private=private)
        lines.append(f"pushed: {result['hub']}")
    report(result, "\n".join(lines), as_json, quiet)


def _recipe(models: tuple[str, ...], given: dict[str, Any]) -> tuple[Recipe, dict[str, Any]]:
    """The recipe with the steps before it, and its settings, from the file that is named, or from
    ``cocktail.yaml`` if no model is named; the command line overrides both."""
    from cocktail.cli.settings import RECIPE_FILE, recipe_here, require_models
    from cocktail.recipe.recipe import recipe_of
    from cocktail.recipe.yaml_file import read_recipes

    documents = [recipe_here(models)]
    if len(models) == 1 and Path(models[0]).suffix in (".yaml", ".yml", ".json"):
        documents, models = read_recipes(Path(models[0])), ()
    keys = ("models", "weights", "output", "max_shard_size", "dtype")
    settings = {**dict.fromkeys(keys), **documents[-1]}
    settings |= {key: value for key, value in given.items() if value not in (None, ())}
    if models:
        settings |= {"models": list(models), "model_parameters": ()}
    require_models(settings)
    if settings.get("merge_method", "linear") == "linear" and not _has_weights(settings):
        raise RecipeError(
            f"no weights given, and no {RECIPE_FILE} here supplies any - pass --weights"
        )
    steps = tuple(map(recipe_of, documents[:-1]))
    return replace(recipe_of(settings), steps=steps), settings


def _has_weights(settings: dict[str, Any]) -> bool:
    given = [settings.get("parameters") or {}, *settings.get("model_parameters", ())]
    return bool(settings["weights"]) or any("weight" in parameters for parameters in given)


def _plan_summary(plan: Plan, output: Path | None, threads: int) -> dict[str, Any]:
    from cocktail.measure.memory import peak_memory
    from cocktail.tensors.dtypes import torch_name

    return {
        "output": None if output is None else str(output),
        "merge_method": plan.recipe.merge_method,
        "model_type": plan.kind.name,
        "ingredients": [
            {
                "model": checkpoint.reference,
                "commit": checkpoint.commit,
                "weight": plan.recipe.weight_of(i),
            }
            for i, checkpoint in enumerate(plan.ingredients)
        ],
        "dtype": torch_name(plan.dtype),
        "parameters": plan.parameters,
        "tensors": len(plan.tensors),
        "input_bytes": plan.input_bytes,
        "output_bytes": plan.output_bytes,
        "peak_memory_bytes": peak_memory(plan, threads),
        "files": [
            {"path": file.path, "bytes": file.nbytes, "tensors": len(file.tensors)}
            for file in plan.files
        ],
        "companions": list(plan.companions),
        "notes": _notes(plan),
    }


def _notes(plan: Plan) -> list[str]:
    mixed = plan.kind.name == "reranker" and len(plan.ingredients) > 1
    return [*plan.notes, *([_MOVED_SCALE] if mixed else [])]


def _plan_text(summary: dict[str, Any]) -> str:
    from cocktail.write.card import shown_weight

    lines = [
        f"{shown_weight(item['weight']):>8}  {item['model']}" for item in summary["ingredients"]
    ]
    lines.append(
        f"{summary['merge_method']}, {summary['model_type']}, "
        f"{summary['parameters'] / 1e6:.1f} M parameters in {summary['dtype']}, "
        f"{summary['tensors']} tensors"
    )
    lines += [f"{f['bytes'] / 1e6:>9.1f} MB  {f['path']}" for f in summary["files"]]
    lines.append(
        f"reads {summary['input_bytes'] / 1e6:.1f} MB, writes {summary['output_bytes'] / 1e6:.1f} "
        f"MB, peak memory about {summary['peak_memory_bytes'] / 1e6:.0f} MB"
    )
    return "\n".join(lines + [f"note: {note}" for note in summary["notes"]])
