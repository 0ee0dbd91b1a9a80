"""What the commands share: options, and how results are printed."""

from __future__ import annotations

import json
import math
from typing import Any

import click

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object on stdout."
)
push_option = click.option(
    "--push-to-hub", metavar="ORG/NAME", help="Also upload the written model to the Hub."
)
private_option = click.option(
    "--private", is_flag=True, help="Make a new repository on the Hub one that only you see."
)
quiet_option = click.option("--quiet", "-q", is_flag=True, help="No progress bar, no summary.")


def report(value: dict[str, Any], text: str, as_json: bool, quiet: bool) -> None:
    """Print a result as JSON or as text."""
    if as_json:
        click.echo(json.dumps(_finite(value), indent=2, allow_nan=False))
    elif not quiet:
        click.echo(text)


def _finite(value: Any) -> Any:
    """The same value with ``None`` for NaN and infinities, which JSON cannot express."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
