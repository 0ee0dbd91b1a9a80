"""The ``cocktail`` command: each body parses, calls one function and prints.

``cocktail search`` stands in ``cocktail.search.command``.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cocktail.errors import CocktailError, RecipeError
from cocktail.search.command import search
from cocktail.version import __version__

if TYPE_CHECKING:
    from cocktail.compare import Difference
    from cocktail.plan import Plan

_STARTED = time.perf_counter()


class _Group(click.Group):
    """Turns the package's own errors into one line and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except CocktailError as error:
            click.echo(f"cocktail: {error}", err=True)
            ctx.exit(1)
        except KeyboardInterrupt:
            click.echo("cocktail: interrupted; nothing was changed", err=True)
            ctx.exit(130)


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
            numbers = [] if argument == "--weights" else None
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
            f"{value!r} is no list of numbers - write them with spaces or commas: 0.5 0.5"
        ) from None


_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
_quiet = click.option("--quiet", "-q", is_flag=True, help="No progress bar, no summary.")


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="cocktail")
def main() -> None:
    """Mix fine-tuned models with their base, and keep both abilities.

    \b
    Examples:
      cocktail mix ./base ./fine-tuned --weights 0.5 0.5 --output ./mixed
      cocktail search ./base ./fine-tuned --data examples.jsonl --output ./mixed
    """


main.add_command(search)


@main.command(cls=_SpacedWeights)
@click.argument("models", nargs=-1, metavar="MODEL...")
@click.option(
    "--weights",
    callback=_parse_weights,
    metavar="W W...",
    help="One number for each model, in the same order; they sum to 1.",
)
@click.option("--normalize", is_flag=True, default=None, help="Divide the weights by their sum.")
@click.option("--output", "-o", metavar="DIR", help="Folder to write the mixed model to.")
@click.option(
    "--model-type",
    metavar="KIND",
    help="reranker, encoder, decoder or encoder-decoder; read from the config if left out.",
)
@click.option("--dtype", help="float32, bfloat16 or float16; as the models are if left out.")
@click.option("--max-shard-size", metavar="SIZE", help="Largest file, such as 500MB.  [5GB]")
@click.option(
    "--head",
    type=click.Choice(["error", "copy", "drop"]),
    help="For a head that only one model has: refuse, take it whole, or leave it out.  [error]",
)
@click.option(
    "--pooling",
    type=click.Choice(["cls", "mean", "max", "lasttoken"]),
    help="Make a sentence-transformers folder with this pooling where the first model is none.",
)
@click.option("--overwrite", is_flag=True, help="Replace a model that stands at the output.")
@click.option("--no-sync", is_flag=True, help="Do not wait for the disk before the rename.")
@click.option("--threads", type=click.IntRange(min=1), help="Default: one for each processor.")
@click.option("--dry-run", is_flag=True, help="Check everything, print the plan, write nothing.")
@_quiet
@_json
def mix(models: tuple[str, ...], as_json: bool, quiet: bool, **given: Any) -> None:
    """Average the weights of MODEL... and write a complete model.

    A MODEL is a local folder or a Hub id org/name[@revision]. Config and tokenizer come from the
    first. What is left out here is read from cocktail.yaml in the current folder, if there is one.

    \b
    Examples:
      cocktail mix ./base ./fine-tuned --weights 0.5 0.5 --output ./mixed
      cocktail mix --weights 0.5 0.5          # models and output from cocktail.yaml
      cocktail mix BAAI/bge-reranker-base ./fine-tuned --weights 0.3,0.7 -o ./mixed --dry-run
    """
    from cocktail.api import checked_plan, mix_to_folder
    from cocktail.mix import default_threads

    settings = _with_recipe_file(models, given)
    output = None if settings["output"] is None else Path(settings["output"])
    if output is None and not given["dry_run"]:
        raise RecipeError("no output given - a mix is written to a folder - pass --output DIR")
    plan = checked_plan(
        _recipe(settings),
        output,
        max_shard_size=settings["max_shard_size"] or "5GB",
        overwrite=given["overwrite"],
    )
    threads = given["threads"] or default_threads()
    summary = _plan_summary(plan, output, threads)
    if output is None or given["dry_run"]:
        _report(summary, _plan_text(summary), as_json, quiet=False)
        return
    report = mix_to_folder(
        plan, output, sync=not given["no_sync"], threads=threads, progress=_shows_bar(quiet)
    )
    seconds = {key: round(value, 3) for key, value in report.seconds.items()}
    seconds["process"] = round(time.perf_counter() - _STARTED, 3)
    result = {**summary, "digest": report.digest, "seconds": seconds}
    text = (
        f"{output}: {plan.parameters / 1e6:.1f} M parameters, {plan.output_bytes / 1e6:.1f} MB, "
        f"mixed from {len(plan.ingredients)} models in {report.seconds['total']:.2f} s"
    )
    _report(result, "\n".join([*(f"note: {note}" for note in plan.notes), text]), as_json, quiet)


@main.command()
@click.argument("model")
@click.option("--tensors", is_flag=True, help="List every tensor with its dtype and shape.")
@_json
def inspect(model: str, tensors: bool, as_json: bool) -> None:
    """Show what MODEL is: kind, parameters, dtypes, files, tokenizer; from headers alone.

    \b
    Example:
      cocktail inspect ./fine-tuned --tensors
    """
    from cocktail.checkpoint import resolve
    from cocktail.compare import inspect as inspect_checkpoint

    found = inspect_checkpoint(resolve(model))
    rows = [f"{key:<13} {_plain(value)}" for key, value in found.items() if key != "tensors"]
    if tensors:
        rows += [f"{t['dtype']:<9} {t['shape']!s:<16} {t['name']}" for t in found["tensors"]]
    _report(found, "\n".join(rows), as_json, quiet=False)


@main.command()
@click.argument("a")
@click.argument("b")
@click.option("--top", default=20, show_default=True, help="How many tensors to list; 0: all.")
@_quiet
@_json
def diff(a: str, b: str, top: int, quiet: bool, as_json: bool) -> None:
    """Show how far model B is from A: relative distance and cosine of every tensor.

    \b
    Example:
      cocktail diff ./base ./fine-tuned --top 10
    """
    from cocktail.checkpoint import resolve
    from cocktail.compare import diff as diff_checkpoints
    from cocktail.mix import default_threads
    from cocktail.progress import byte_progress

    ours, theirs = resolve(a), resolve(b)
    total = sum(info.nbytes for checkpoint in (ours, theirs) for _, info in checkpoint)
    with byte_progress(total, "comparing", shown=_shows_bar(quiet)) as advance:
        found = diff_checkpoints(ours, theirs, threads=default_threads(), progress=advance)
    rows = found.tensors[: top or None]
    value = {
        "a": a,
        "b": b,
        "distance": found.distance,
        "cosine": found.cosine,
        "only_in_a": found.only_in_a,
        "only_in_b": found.only_in_b,
        "other_shape": found.other_shape,
        "tensors": [
            {"name": r.name, "parameters": r.numel, "distance": r.distance, "cosine": r.cosine}
            for r in found.tensors
        ],
    }
    lines = ["distance    cosine  tensor"]
    lines += [f"{row.distance:8.5f}  {row.cosine:8.5f}  {row.name}" for row in rows]
    lines.append(f"{found.distance:8.5f}  {found.cosine:8.5f}  all {len(found.tensors)} tensors")
    _report(value, "\n".join(lines + _unmatched(found)), as_json, quiet=False)


@main.command()
@click.argument("folder", metavar="DIR")
@_quiet
@_json
def verify(folder: str, quiet: bool, as_json: bool) -> None:
    """Recompute the digests of the mix in DIR and of its ingredients.

    Exit code 1 if one of them is not what it was when the mix was made.

    \b
    Example:
      cocktail verify ./mixed
    """
    from dataclasses import asdict

    from cocktail.verify import verify as verify_mix

    verdicts = verify_mix(folder, progress=_shows_bar(quiet))
    lines = [
        f"{v.state:<9}  {v.role:<10}  {v.model}" + (f"  ({v.detail})" if v.detail else "")
        for v in verdicts
    ]
    same = all(verdict.state != "different" for verdict in verdicts)
    value = {"verified": same, "verdicts": [asdict(verdict) for verdict in verdicts]}
    _report(value, "\n".join(lines), as_json, quiet=False)
    if not same:
        sys.exit(1)


def _with_recipe_file(models: tuple[str, ...], given: dict[str, Any]) -> dict[str, Any]:
    """Fill what the command line leaves out from ``cocktail.yaml``, where there is one."""
    from cocktail.recipe import RECIPE_FILE, read_recipe

    path = Path(RECIPE_FILE)
    settings = read_recipe(path) if path.is_file() else {}
    settings = {**dict.fromkeys(("models", "weights", "output", "max_shard_size")), **settings}
    settings |= {key: value for key, value in given.items() if value is not None}
    if models:
        settings["models"] = list(models)
    for key, how in (("models", "name two folders or Hub ids"), ("weights", "pass --weights")):
        if not settings[key]:
            raise RecipeError(f"no {key} given, and no {RECIPE_FILE} here supplies them - {how}")
    return settings


def _recipe(settings: dict[str, Any]) -> Any:
    from cocktail.recipe import make_recipe

    return make_recipe(
        settings["models"],
        settings["weights"],
        model_type=settings.get("model_type"),
        dtype=settings.get("dtype"),
        head=settings.get("head") or "error",
        pooling=settings.get("pooling"),
        normalize=settings.get("normalize") or False,
    )


def _plan_summary(plan: Plan, output: Path | None, threads: int) -> dict[str, Any]:
    from cocktail.dtypes import torch_name

    return {
        "output": None if output is None else str(output),
        "model_type": plan.kind.name,
        "ingredients": [
            {"model": checkpoint.reference, "commit": checkpoint.commit, "weight": weight}
            for checkpoint, weight in zip(plan.ingredients, plan.recipe.weights, strict=True)
        ],
        "dtype": torch_name(plan.dtype),
        "parameters": plan.parameters,
        "tensors": len(plan.tensors),
        "input_bytes": plan.input_bytes,
        "output_bytes": plan.output_bytes,
        "peak_memory_bytes": plan.peak_memory(threads),
        "files": [
            {"path": file.path, "bytes": file.nbytes, "tensors": len(file.tensors)}
            for file in plan.files
        ],
        "companions": list(plan.companions),
        "notes": list(plan.notes),
    }


def _plan_text(summary: dict[str, Any]) -> str:
    lines = [f"{item['weight']:>8.4g}  {item['model']}" for item in summary["ingredients"]]
    lines.append(
        f"{summary['model_type']}, {summary['parameters'] / 1e6:.1f} M parameters in "
        f"{summary['dtype']}, {summary['tensors']} tensors"
    )
    lines += [f"{f['bytes'] / 1e6:>9.1f} MB  {f['path']}" for f in summary["files"]]
    lines.append(
        f"reads {summary['input_bytes'] / 1e6:.1f} MB, writes {summary['output_bytes'] / 1e6:.1f} "
        f"MB, peak memory about {summary['peak_memory_bytes'] / 1e6:.0f} MB"
    )
    return "\n".join(lines + [f"note: {note}" for note in summary["notes"]])


def _unmatched(found: Difference) -> list[str]:
    from cocktail.errors import listed

    groups = (
        ("only in A", found.only_in_a),
        ("only in B", found.only_in_b),
        ("of different shapes", found.other_shape),
    )
    return [f"{len(names)} {what}: {listed(names)}" for what, names in groups if names]


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {number:,}" for key, number in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    return "-" if value is None else f"{value:,}" if type(value) is int else str(value)


def _shows_bar(quiet: bool) -> bool:
    return not quiet and sys.stderr.isatty()


def _report(value: dict[str, Any], text: str, as_json: bool, quiet: bool) -> None:
    if as_json:
        click.echo(json.dumps(value, indent=2))
    elif not quiet:
        click.echo(text)
