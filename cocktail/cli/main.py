"""The ``cocktail`` command: each body parses, calls one function and prints.

``cocktail mix`` is in ``cocktail.cli.mix``, ``cocktail search`` in ``cocktail.cli.search``.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EPIPE
from typing import TYPE_CHECKING, Any

import click

from cocktail.cli.convert import convert
from cocktail.cli.mix import mix
from cocktail.cli.printing import json_option, quiet_option, report
from cocktail.cli.search import search
from cocktail.errors import CocktailError, counted, listed
from cocktail.version import __version__

if TYPE_CHECKING:
    from cocktail.checkpoint.diff import Difference

SECONDS_OF_THE_FIRST = 5.0


class _Terminated(BaseException):
    """SIGTERM: what has been begun is removed, as after Ctrl-C. A search goes no further."""


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Inside, SIGTERM raises ``_Terminated``, unless the caller handles it already."""

    def terminate(*_: object) -> None:
        raise _Terminated

    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


class _Group(click.Group):
    """Turns the package's own errors into one line and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with _sigterm_raises():
                return super().invoke(ctx)
        except CocktailError as error:
            _say(str(error))
            ctx.exit(1)
        except OSError as error:
            if error.errno == EPIPE:  # the reader has seen enough; click exits quietly
                raise
            found = f"{error.filename} cannot be used" if error.filename else "printing failed"
            _say(f"{found} ({error.strerror or error}) - check it and run again")
            ctx.exit(1)
        except KeyboardInterrupt:
            _say("interrupted; nothing was changed - run the same command to start anew")
            ctx.exit(130)
        except _Terminated:
            if _is_first():
                _say("terminated")
            ctx.exit(128 + signal.SIGTERM)


def _is_first() -> bool:
    """Whether this is the first of several processes, or the only one."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"


def _say(line: str) -> None:
    """Print once why the command ends: of several processes, the first does, and all end with it.
    Another with reasons of its own prints them after a while."""
    if not _is_first():
        time.sleep(SECONDS_OF_THE_FIRST)
    click.echo(f"cocktail: {line}", err=True)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="cocktail")
def main() -> None:
    """Mix fine-tuned models with their base, and keep the abilities of both.

    \b
    Examples:
      cocktail mix ./base ./fine-tuned --weights 0.5 0.5 --output ./mixed
      cocktail search ./base ./fine-tuned --data examples.jsonl --output ./mixed
    """


main.add_command(convert)
main.add_command(mix)
main.add_command(search)


@main.command()
@click.argument("model")
@click.option("--tensors", is_flag=True, help="List every tensor with its dtype and shape.")
@json_option
def inspect(model: str, tensors: bool, as_json: bool) -> None:
    """Show what MODEL is: kind, parameters, dtypes, files, tokenizer; from headers alone.

    \b
    Example:
      cocktail inspect ./fine-tuned --tensors
    """
    from cocktail.checkpoint.inspect import inspect_model

    found = inspect_model(model).to_dict()
    rows = [f"{key:<13} {_plain(value)}" for key, value in found.items() if key != "tensors"]
    if tensors:
        rows += [f"{t['dtype']:<9} {t['shape']!s:<16} {t['name']}" for t in found["tensors"]]
    report(found, "\n".join(rows), as_json, quiet=False)


@main.command()
@click.argument("a")
@click.argument("b")
@click.option("--top", type=click.IntRange(min=0), default=20, show_default=True,
              help="How many tensors to list; 0 for all.")  # fmt: skip
@quiet_option
@json_option
def diff(a: str, b: str, top: int, quiet: bool, as_json: bool) -> None:
    """Show how far model B is from A: the relative distance and cosine of every tensor.

    \b
    Example:
      cocktail diff ./base ./fine-tuned --top 10
    """
    from cocktail.checkpoint.diff import diff_models

    found = diff_models(a, b, progress=not quiet)
    rows = found.tensors[: top or None]
    lines = ["distance    cosine  tensor"]
    lines += [f"{row.distance:8.5f}  {row.cosine:8.5f}  {row.name}" for row in rows]
    everything = counted(len(found.tensors), "tensor")
    lines.append(f"{found.distance:8.5f}  {found.cosine:8.5f}  all {everything}")
    report(found.to_dict(), "\n".join(lines + _unmatched(found)), as_json, quiet=False)


@main.command()
@click.argument("folder", metavar="DIR")
@quiet_option
@json_option
def verify(folder: str, quiet: bool, as_json: bool) -> None:
    """Recompute the digests of the mix in DIR and of its ingredients.

    The exit code is 1 if one of them has changed since the mix was made.

    \b
    Example:
      cocktail verify ./mixed
    """
    from cocktail.write.verify import verify_mix

    found = verify_mix(folder, progress=not quiet)
    lines = [
        f"{v.state:<9}  {v.role:<10}  {v.model}" + (f"  ({v.detail})" if v.detail else "")
        for v in found.verdicts
    ]
    report(found.to_dict(), "\n".join(lines), as_json, quiet=False)
    if not found.verified:
        sys.exit(1)


@main.command()
@click.argument("name", required=False)
@json_option
def methods(name: str | None, as_json: bool) -> None:
    """List the merge methods, or explain the one called NAME.

    \b
    Examples:
      cocktail methods
      cocktail methods ties
    """
    from cocktail.methods.describe import described, table

    value = described(name)
    report(value, table(value, name), as_json, quiet=False)


def _unmatched(found: Difference) -> list[str]:

    groups = (
        ("only in A", found.only_in_a),
        ("only in B", found.only_in_b),
        ("with different shapes", found.other_shape),
    )
    return [f"{len(names)} {what}: {listed(names)}" for what, names in groups if names]


def _plain(value: object) -> str:
    if isinstance(value, dict):
        items = {
            key: str(each) if key.endswith("_id") and each is not None else each  # not an amount
            for key, each in value.items()
        }
        return ", ".join(f"{key} {_plain(each)}" for key, each in items.items())
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    if value is None:
        return "-"
    return f"{value:,}" if type(value) is int else str(value).replace("\n", "\\n")
