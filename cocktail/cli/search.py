"""The ``cocktail search`` command: parses, calls, prints."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import fields
from functools import partial
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

import click

from cocktail.cli.printing import json_option, private_option, push_option, quiet_option
from cocktail.cli.printing import report as show
from cocktail.errors import RecipeError, counted
from cocktail.search.options import SearchOptions

if TYPE_CHECKING:
    from cocktail.plan.plan import Plan
    from cocktail.search.calibrate import Calibrator
    from cocktail.search.result import SearchResult
    from cocktail.write.card import Figure


def _search_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add an option for every field of :class:`SearchOptions` that has a ``--help`` text."""
    hints = get_type_hints(SearchOptions)
    for field in reversed(fields(SearchOptions)):
        if "help" not in field.metadata:
            continue
        hint = hints[field.name]
        kind = get_args(hint)[0] if NoneType in get_args(hint) else hint
        command = click.option(
            f"--{field.name.replace('_', '-')}",
            type=click.Choice(get_args(kind)) if get_origin(kind) is Literal else kind,
            default=field.default,
            show_default=field.default is not None,
            help=field.metadata["help"],
        )(command)
    return command


@click.command()
@click.argument("models", nargs=-1, metavar="MODEL...")
@click.option("--data", metavar="FILE", help="Examples of the target, JSONL.  [required]")
@click.option("--retain", metavar="FILE",
              help="Examples of what not to lose, or a task of mteb; see --max-drop.")  # fmt: skip
@click.option("--retain-text", metavar="FILE",
              help="The same without labels: passages, one per line, or JSONL.")  # fmt: skip
@click.option("--base", metavar="MODEL", help="The MODEL that is the base.  [the first]")
@_search_options
@click.option(
    "--model-type",
    metavar="KIND",
    help="reranker, encoder, decoder or encoder-decoder.  [read from the config]",
)
@click.option("--head", type=click.Choice(["error", "copy", "mix", "drop"]),
              help="For a head that only some models have, as in mix.  [error]")  # fmt: skip
@click.option("--trust-remote-code", is_flag=True, help="Run code that comes with the first MODEL.")
@click.option("--device", help="cpu, cuda...  [the accelerator, if there is one]")
@click.option("--output", "-o", metavar="DIR", help="Also write the mix to this folder.")
@click.option("--overwrite", is_flag=True, help="Replace an existing model at the output.")
@click.option(
    "--report", metavar="DIR", help="Write report.html, report.md, search.json and pictures there."
)
@click.option(
    "--calibrate",
    metavar="FILE",
    help="Labelled pairs that make sigmoid(score) of the written mix a probability.",
)
@push_option
@private_option
@quiet_option
@json_option
@click.option("--budget", type=float, hidden=True, help="Accepted but not needed.")
def search(
    models: tuple[str, ...],
    budget: float | None,
    data: str | None,
    retain: str | None,
    retain_text: str | None,
    output: str | None,
    overwrite: bool,
    report: str | None,
    calibrate: str | None,
    push_to_hub: str | None,
    private: bool,
    quiet: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Find mixing weights for MODEL... from a few examples.

    The base comes first. Mixes from it to the fine-tune are measured on the examples and on what is
    to be retained, and one of them is chosen. If no MODEL is named, cocktail.yaml in the current
    folder supplies whatever the command line leaves out. Ctrl-C reports the best found so far.

    \b
    Examples:
      cocktail search ./base ./fine-tuned --data examples.jsonl --output ./mixed
      cocktail search --data examples.jsonl    # models from cocktail.yaml
      cocktail search ./base ./tuned --data target.jsonl --retain general.jsonl --report ./report
      cocktail search ./base ./tuned --data target.jsonl --retain-text general.txt -o ./mixed
      cocktail search ./base ./tuned --data target.jsonl -o ./mixed --calibrate held-out.jsonl
      torchrun --nproc-per-node 2 -m cocktail search ./base ./tuned --data examples.jsonl
    """
    from cocktail.measure.tasks.examples import source_name
    from cocktail.write.place import output_folder

    if budget is not None and not quiet:
        click.echo("cocktail: --budget is not needed: a search runs each mix once", err=True)
    settings, written_as = _settings(models, given)
    if not data:
        raise RecipeError("no examples given - a search needs some - pass --data FILE")
    names = settings["models"]
    place = None if output is None else output_folder(output)
    calibrator = _checked_output(
        settings, written_as, place, overwrite=overwrite, calibrate=calibrate,
        repository=push_to_hub,
    )  # fmt: skip
    _tell_start(settings, data, quiet=quiet)
    from cocktail.measure.processes import Processes
    from cocktail.search.report import check_report_folder, summary
    from cocktail.search.run import search_weights

    if report is not None:
        check_report_folder(Path(report), names, place)
    processes = Processes()
    pictures: list[Path] = []
    try:
        result = search_weights(
            settings.pop("models"),
            settings.pop("model_type"),
            data,
            retain_data=retain,
            retain_text=retain_text,
            progress=not quiet,
            processes=processes,
            **settings,
        )
        # A search is long: print and write what it found, whatever else fails.
        with ExitStack() as afterwards:
            if processes.is_first and calibrator is not None and as_json:
                # One object, which has the calibration of what is written before.
                afterwards.callback(_show_calibrated, result, calibrator)
            # The last callback runs first: the mix's card shows the report's picture.
            if processes.is_first and place is not None:
                given = {**settings, "model_type": result.model_type}
                planned = partial(_plan, names, result.weights, given, written_as, place, overwrite)
                figures = result.figures(*map(source_name, (data, retain or retain_text)))
                afterwards.callback(
                    _write_mix, result, planned, figures, pictures, place, quiet=quiet,
                    silent=quiet or as_json, calibrator=calibrator, repository=push_to_hub,
                    private=private,
                )  # fmt: skip
            if processes.is_first and report is not None:
                afterwards.callback(_write_report, result, report, pictures, quiet or as_json)
            if processes.is_first and not (calibrator is not None and as_json):
                show(result.to_dict(), summary(result), as_json, quiet)
    finally:
        processes.leave()
    if result.interrupted:
        sys.exit(130)


def _checked_output(
    settings: dict[str, Any],
    written_as: dict[str, Any],
    place: Path | None,
    *,
    overwrite: bool,
    calibrate: str | None,
    repository: str | None,
) -> Calibrator | None:
    """Refuse before the search what would be refused after it.

    Returns:
        What calibrates the written mix, where that is asked for.

    Raises:
        CocktailError: the mix cannot be written, calibrated or pushed.
    """
    from cocktail.search.calibrate import Calibrator, check_calibration
    from cocktail.write.push import check_push

    if place is None:
        if calibrate is not None:
            raise RecipeError(
                "--calibrate is given without --output - scale and offset go into the head of the "
                "mix that is written - add --output DIR"
            )
        if repository is not None:
            raise RecipeError(
                "--push-to-hub is given without --output - what is written there is pushed - add "
                "--output DIR"
            )
        return None
    names = settings["models"]
    plan = _plan(names, [1 / len(names)] * len(names), settings, written_as, place, overwrite)
    if repository is not None:
        check_push(repository)
    if calibrate is None:
        return None
    check_calibration(plan, calibrate)
    devices, max_length = settings["device"], settings["max_input_length"]
    return Calibrator(calibrate, place, devices=devices, max_length=max_length)


def _tell_start(settings: dict[str, Any], data: str, *, quiet: bool) -> None:
    """Say what is searched, after the headers alone have shown that it can be.

    Raises:
        CocktailError: it cannot.
    """
    from cocktail.measure.refillable import search_plan
    from cocktail.system.progress import tell_start

    plan = search_plan(settings["models"], settings["model_type"], head=settings["head"])
    if not quiet:
        models = counted(len(plan.ingredients), plan.kind.name)
        tell_start(f"searching: {models} of {plan.parameters:,} parameters, {data}")


def _show_calibrated(result: SearchResult, calibrator: Calibrator) -> None:
    """Print the result and the calibration, which is null where it failed."""
    show({**result.to_dict(), "calibration": calibrator.found}, "", as_json=True, quiet=False)


def _write_mix(
    result: SearchResult,
    planned: Callable[[], Plan],
    figures: Sequence[Figure],
    pictures: Sequence[Path],
    output: Path,
    *,
    quiet: bool,
    silent: bool,
    calibrator: Calibrator | None,
    repository: str | None,
    private: bool,
) -> None:
    """Write the mix that a search has found, push it where it was asked for, and say so.

    Args:
        pictures: the picture of the curve, if the report has one.
    """
    from cocktail.pipeline import mix_to_folder
    from cocktail.write.push import push

    lines = []
    if not result.interrupted:
        picture = next(iter(pictures), None)
        mix_to_folder(
            planned(), output, progress=not quiet, figures=figures, picture=picture,
            calibrate=calibrator,
        )  # fmt: skip
    lines.append(f"{output}: {_what_is_written(result)}")
    if calibrator is not None and calibrator.found is not None:
        lines.append(calibrator.sentence())
    if repository is not None and not result.interrupted:
        lines.append(f"pushed: {push(output, repository, private=private)}")
    if not silent:
        click.echo("\n".join(lines))


def _what_is_written(result: SearchResult) -> str:
    if result.interrupted:
        return "not written: interrupted"
    if max(result.weights) < 1:
        return "mixed model"
    copied = result.models[result.weights.index(1.0)]
    return f"a copy of {copied}" + ("" if result.gained else ", since nothing was gained")


def _write_report(result: SearchResult, report: str, pictures: list[Path], quiet: bool) -> None:
    """Write the report, name its files, and add its picture to ``pictures``."""
    from cocktail.search.report import write_report
    from cocktail.write.card import CURVE_PICTURE

    try:
        written = write_report(result, Path(report))
    except KeyboardInterrupt:
        click.echo(f"cocktail: {report}: not written: interrupted", err=True)
        sys.exit(130)
    pictures += [Path(report) / name for name in written if name == CURVE_PICTURE]
    if not quiet:
        click.echo("".join(f"{report}/{name}\n" for name in written), nl=False)


def _settings(
    models: tuple[str, ...], given: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options, completed from ``cocktail.yaml``, and how to write the mix, which only that file
    says.

    Raises:
        RecipeError: there are no models, or the recipe does not merge them by weights.
    """
    from cocktail.cli.settings import RECIPE_FILE, recipe_here, require_models

    recipe = recipe_here(models)
    settings = {**given, "models": list(models) or recipe.get("models")}
    require_models(settings)
    method = recipe.get("merge_method", "linear")
    if method != "linear":
        raise RecipeError(
            f"{RECIPE_FILE}: merge_method is {method} - a search finds weights for a weighted "
            "average (linear) - leave merge_method out, or name the models on the command line"
        )
    for key, name in (("model_type",) * 2, ("head",) * 2, ("pooling",) * 2, ("base", "base_model")):
        settings[key] = given[key] or recipe.get(name)
    settings["head"] = settings["head"] or "error"
    return settings, {key: recipe[key] for key in ("dtype", "max_shard_size") if key in recipe}


def _plan(
    models: Sequence[str], weights: Sequence[float], settings: dict[str, Any],
    written_as: dict[str, Any], output: Path, overwrite: bool,
) -> Plan:  # fmt: skip
    from cocktail.pipeline import checked_plan
    from cocktail.plan.plan import DEFAULT_SHARD_BYTES
    from cocktail.recipe.recipe import make_recipe

    recipe = make_recipe(
        models, weights, model_type=settings["model_type"], head=settings["head"],
        pooling=settings["pooling"], dtype=written_as.get("dtype"),
    )  # fmt: skip
    size = written_as.get("max_shard_size", DEFAULT_SHARD_BYTES)
    return checked_plan(recipe, output, max_shard_size=size, overwrite=overwrite)
