"""Options and output that several commands share."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


def reranker_options(command: Command) -> Command:
    """Adds the options of a Reranker, which arrive as one dict `reranker_options`."""
    options = [
        click.option("--max_length", default=512, show_default=True, help="Most tokens of a pair."),
        click.option("--query_max_length", type=int, help="Most tokens of the query."),
        click.option(
            "--batch_size",
            default=128,
            show_default=True,
            help="Most pairs of full length in one forward.",
        ),
        click.option("--micro_batch_tokens", type=int, help="Most padded tokens in one forward."),
        click.option("--use_fp16", is_flag=True, help="Half precision, on a GPU; bf16 on a CPU that multiplies it."),
        click.option("--use_bf16", is_flag=True, help="bfloat16, on a GPU or a CPU that multiplies it."),
        click.option("--devices", multiple=True, help="cuda:0, cpu, ...; repeatable."),
        click.option("--query_instruction_for_rerank", help="Instruction for the query."),
        click.option(
            "--query_instruction_format",
            default="{}{}",
            show_default=True,
            help="Its two {} take the instruction and the query.",
        ),
        click.option("--passage_instruction_for_rerank", help="Instruction for the passage."),
        click.option(
            "--passage_instruction_format",
            default="{}{}",
            show_default=True,
            help="Its two {} take the instruction and the passage.",
        ),
        click.option("--trust_remote_code", is_flag=True, help="Run code that comes with a model."),
        click.option("--cache_dir", help="Where downloads from the Hub are kept."),
    ]

    @functools.wraps(command)
    def gathered(**arguments: Any) -> Any:
        names = [option.name for option in added]
        chosen = {name: arguments.pop(name) for name in names}
        chosen["devices"] = list(chosen["devices"]) or None
        return command(**arguments, reranker_options=chosen)

    wrapped: Any = gathered
    before = len(getattr(wrapped, "__click_params__", []))
    for option in reversed(options):
        wrapped = option(wrapped)
    added: list[click.Parameter] = wrapped.__click_params__[before:]
    return wrapped  # type: ignore[no-any-return]


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace an output that exists.")


def report(fields: dict[str, Any], text: str, as_json: bool) -> None:
    """Prints a result for a program or for a person."""
    click.echo(json.dumps(fields) if as_json else text)
