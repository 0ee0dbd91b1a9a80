"""Options and output that several commands share."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any, TypeVar

import click

from reranker_ft.data.files import finite

Command = TypeVar("Command", bound=Callable[..., Any])

COUNT = click.IntRange(min=1)

# Names that FlagEmbedding, LM_Cocktail and transformers have for options of these commands.
_OTHER_NAMES = {
    "max-len": "max-length",
    "max-input-length": "max-length",
    "query-max-len": "query-max-length",
    "passage-max-len": "passage-max-length",
}


def kebab(name: str) -> str:
    """Return the one name of an option, however it is spelled: ``max_len`` is ``max-length``."""
    name = name.replace("_", "-")
    return _OTHER_NAMES.get(name, name)


def _lengths(*, passage: bool) -> list[Callable[[Command], Command]]:
    options = [
        click.option(
            "--max-length", default=512, show_default=True, help="Maximum tokens of a pair."
        ),
        click.option("--query-max-length", type=int, help="Maximum tokens of the query."),
    ]
    if passage:
        options.append(
            click.option("--passage-max-length", type=int, help="Maximum tokens of the passage.")
        )
    return options


def length_options(command: Command) -> Command:
    """Add the options that limit the tokens of a pair, its query and its passage."""
    for option in reversed(_lengths(passage=True)):
        command = option(command)
    return command


def reranker_options(command: Command) -> Command:
    """Add the options of a ``Reranker``, which arrive as one dict ``reranker_options``."""
    options = [
        *_lengths(passage=False),
        click.option(
            "--batch-size",
            default=128,
            show_default=True,
            help="Maximum pairs of full length per forward pass.",
        ),
        click.option(
            "--micro-batch-tokens", type=int, help="Maximum padded tokens per forward pass."
        ),
        click.option(
            "--use-fp16",
            is_flag=True,
            help="Use half precision, on a GPU; bfloat16, on a CPU that multiplies it.",
        ),
        click.option(
            "--use-bf16", is_flag=True, help="Use bfloat16, on a GPU or a CPU that multiplies it."
        ),
        click.option(
            "--backend",
            type=click.Choice(["torch", "openvino"]),
            default="torch",
            show_default=True,
            help="What computes the scores; openvino is for cross-encoders on a CPU.",
        ),
        click.option("--devices", multiple=True, help="cuda:0, cpu, ...; repeatable."),
        click.option("--query-instruction-for-rerank", help="Instruction for the query."),
        click.option(
            "--query-instruction-format",
            default="{}{}",
            show_default=True,
            help="Its two {} take the instruction and the query.",
        ),
        click.option("--passage-instruction-for-rerank", help="Instruction for the passage."),
        click.option(
            "--passage-instruction-format",
            default="{}{}",
            show_default=True,
            help="Its two {} take the instruction and the passage.",
        ),
        click.option(
            "--sep-token",
            help="Goes between query and passage if the tokenizer puts nothing there.",
        ),
        click.option(
            "--prompt-template",
            help="What a language model reads: bge-llm, qwen3-reranker, mxbai-rerank-v2, or a text "
            "with {query} and {passage}; what its folder says if not given.",
        ),
        click.option("--yes-token", help="Answer of a relevant passage to a prompt of one's own."),
        click.option("--no-token", help="The other answer."),
        click.option("--peft-path", help="A PEFT adapter to merge into a language model."),
        click.option("--trust-remote-code", is_flag=True, help="Run code that comes with a model."),
        click.option("--cache-dir", help="Where downloads from the Hub are kept."),
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


json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object on stdout."
)
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace an output that exists.")


def report(fields: dict[str, Any], text: str, as_json: bool) -> None:
    """Print a result as JSON or as text."""
    click.echo(json.dumps(finite(fields), allow_nan=False) if as_json else text)
