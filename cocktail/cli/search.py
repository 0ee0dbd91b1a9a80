"""The ``cocktail search`` command: parses, calls, prints."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from cocktail.errors import RecipeError
from cocktail.cli.printing import report as show
from cocktail.cli.printing import shows_bar
from cocktail.search.options import DEFAULT_BUDGET, ComputeDtype, RetainMeasure, Strategy

if TYPE_CHECKING:
    from cocktail.plan.plan import Plan
    from cocktail.search.result import SearchResult


@click.command()
@click.argument("models", nargs=-1, metavar="MODEL...")
@click.option("--data", metavar="FILE", help="Examples of the target, JSONL.  [required]")
@click.option("--retain", metavar="FILE", help="Examples of what must not be lost; see --max-drop.")
@click.option(
    "--max-drop",
    type=float,
    default=0.0,
    show_default=True,
    help="How much worse than the base the mix may be on the retain examples.",
)
@click.option(
    "--retain-by",
    type=click.Choice(get_args(RetainMeasure)),
    default="loss",
    show_default=True,
    help="What --max-drop counts: the loss, or NDCG@10.",
)
@click.option("--base", metavar="MODEL", help="Which MODEL is the base.  [the first]")
@click.option(
    "--strategy", type=click.Choice(get_args(Strategy)), default="auto", show_default=True,
    help="How weights are proposed; auto also decides whether to keep the prior.",
)  # fmt: skip
@click.option("--budget", type=float, default=DEFAULT_BUDGET, show_default=True,
              help="Passes over the examples; a backward counts as two.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True,
              help="Of drawn negatives, folds and bootstrap.")  # fmt: skip
@click.option(
    "--model-type",
    metavar="KIND",
    help="reranker, encoder, decoder or encoder-decoder; read from the config if left out.",
)
@click.option("--temperature", type=float, default=5.0, show_default=True,
              help="Of LM-Cocktail's rule softmax(-loss / T).")  # fmt: skip
@click.option("--batch-size", type=int, default=2, show_default=True,
              help="Examples that this rule averages at a time.")  # fmt: skip
@click.option("--max-input-length", type=int, default=2048, show_default=True,
              help="Tokens, as far as the model goes.")  # fmt: skip
@click.option("--neg-number", type=int, help="Negatives to draw of each example.  [all]")
@click.option(
    "--pooling",
    type=click.Choice(["cls", "mean", "max", "lasttoken"]),
    help="Of an encoder.  [its own, cls where it has none]",
)
@click.option("--head", type=click.Choice(["error", "copy", "mix", "drop"]),
              help="For a head that only some models have, as in mix.  [error]")  # fmt: skip
@click.option("--trust-remote-code", is_flag=True, help="Run code that comes with the first MODEL.")
@click.option("--device", help="cpu, cuda...  [the accelerator where there is one]")
@click.option("--compute-dtype", type=click.Choice(get_args(ComputeDtype)), default="float32",
              show_default=True, help="Of the one model in memory.")  # fmt: skip
@click.option("--output", "-o", metavar="DIR", help="Also write the mix to this folder.")
@click.option("--overwrite", is_flag=True, help="Replace a model that stands at the output.")
@click.option("--report", metavar="DIR", help="Write report.md, search.json and pictures there.")
@click.option("--quiet", "-q", is_flag=True, help="No progress bar, no summary.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def search(
    models: tuple[str, ...],
    data: str | None,
    retain: str | None,
    output: str | None,
    overwrite: bool,
    report: str | None,
    quiet: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Find mixing weights for MODEL... from a few examples.

    Every figure is measured on the mixed model. Where no MODEL is named, what is left out is read
    from cocktail.yaml in the current folder. Ctrl-C reports the best found so far.

    \b
    Examples:
      cocktail search ./base ./fine-tuned --data examples.jsonl --output ./mixed
      cocktail search --data examples.jsonl    # models from cocktail.yaml
      cocktail search ./base ./tuned --data target.jsonl --retain general.jsonl --report ./report
      torchrun --nproc-per-node 2 -m cocktail search ./base ./tuned --data examples.jsonl
    """
    from cocktail.write.place import output_folder  # noqa: PLC0415 - seconds to import
    from cocktail.measure.processes import Processes  # noqa: PLC0415
    from cocktail.search.report import check_report_folder, summary  # noqa: PLC0415
    from cocktail.search.run import search_weights  # noqa: PLC0415

    settings, written_as = _settings(models, given)
    if not data:
        raise RecipeError("no examples given - a search learns from some - pass --data FILE")
    names = settings["models"]
    place = None if output is None else output_folder(output)
    if report is not None:
        check_report_folder(Path(report), names, place)
    if place is not None:  # refuse before the search what would be refused after it
        _plan(names, [1 / len(names)] * len(names), settings, written_as, place, overwrite)
    processes = Processes()
    try:
        result = search_weights(
            settings.pop("models"),
            settings.pop("model_type"),
            data,
            retain_data=retain,
            progress=shows_bar(quiet),
            processes=processes,
            **settings,
        )
        # A search is long: what it found is printed and written whatever fails beside that.
        with ExitStack() as afterwards:
            if processes.is_first and report is not None:
                afterwards.callback(_write_report, result, report, quiet=quiet or as_json)
            if processes.is_first and place is not None:
                given = {**settings, "model_type": result.model_type}
                planned = partial(_plan, names, result.weights, given, written_as, place, overwrite)
                afterwards.callback(_write_mix, result, planned, place, quiet, as_json)
            if processes.is_first:
                show(result.to_dict(), summary(result), as_json, quiet)
    finally:
        processes.leave()
    if result.interrupted:
        sys.exit(130)


def _write_mix(
    result: SearchResult, planned: Callable[[], Plan], output: Path, quiet: bool, as_json: bool
) -> None:
    """Write the mix that a search has found, and say so."""
    from cocktail.api import mix_to_folder  # noqa: PLC0415

    if not result.interrupted:
        mix_to_folder(planned(), output, progress=shows_bar(quiet))
    if not (quiet or as_json):
        done = "not written: interrupted" if result.interrupted else "mixed model"
        click.echo(f"{output}: {done}")


def _write_report(result: SearchResult, report: str, *, quiet: bool) -> None:
    """Write the report, and say so."""
    from cocktail.search.report import write_report  # noqa: PLC0415

    try:
        written = write_report(result, Path(report))
    except KeyboardInterrupt:
        click.echo(f"cocktail: {report}: not written: interrupted", err=True)
        sys.exit(130)
    if not quiet:
        click.echo("".join(f"{report}/{name}\n" for name in written), nl=False)


def _settings(
    models: tuple[str, ...], given: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options, with what is left out from ``cocktail.yaml``, and how the mix is written, from
    there alone.

    Raises:
        RecipeError: there are no models, or the recipe merges them by something else than weights.
    """
    from cocktail.recipe.yaml_file import RECIPE_FILE, read_recipe  # noqa: PLC0415

    path = Path(RECIPE_FILE)
    recipe = read_recipe(path) if path.is_file() and not models else {}
    settings = {**given, "models": list(models) or recipe.get("models")}
    if not settings["models"]:
        raise RecipeError(
            f"no models given, and no {RECIPE_FILE} here supplies them - name two folders or Hub "
            "ids"
        )
    method = recipe.get("merge_method", "linear")
    if method != "linear":
        raise RecipeError(
            f"{path}: merge_method is {method} - a search finds the weights of a weighted average "
            "(linear) - leave merge_method out, or name the models on the command line"
        )
    for key, name in (("model_type",) * 2, ("head",) * 2, ("pooling",) * 2, ("base", "base_model")):
        settings[key] = given[key] or recipe.get(name)
    settings["head"] = settings["head"] or "error"
    return settings, {key: recipe[key] for key in ("dtype", "max_shard_size") if key in recipe}


def _plan(
    models: Sequence[str], weights: Sequence[float], settings: dict[str, Any],
    written_as: dict[str, Any], output: Path, overwrite: bool,
) -> Plan:  # fmt: skip
    from cocktail.api import checked_plan  # noqa: PLC0415
    from cocktail.plan.plan import DEFAULT_SHARD_BYTES  # noqa: PLC0415
    from cocktail.recipe.recipe import make_recipe  # noqa: PLC0415

    recipe = make_recipe(
        models, weights, model_type=settings["model_type"], head=settings["head"],
        pooling=settings["pooling"], dtype=written_as.get("dtype"),
    )  # fmt: skip
    size = written_as.get("max_shard_size", DEFAULT_SHARD_BYTES)
    return checked_plan(recipe, output, max_shard_size=size, overwrite=overwrite)
