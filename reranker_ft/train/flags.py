"""The flags of training, read into its three groups of arguments."""

from __future__ import annotations

import sys
from typing import Any, NoReturn

from transformers import HfArgumentParser

from reranker_ft.errors import ArgumentError
from reranker_ft.train.config import DataArguments, ModelArguments, RerankerTrainingArguments

USAGE = "reranker-ft train --model_name_or_path MODEL --train_data FILE... --output_dir DIR [flags]"

# Flags of transformers 4, under the names they have now.
RENAMED_FLAGS = {"--evaluation_strategy": "--eval_strategy", "--no_cuda": "--use_cpu"}


class OneLineParser(HfArgumentParser):  # type: ignore[misc]
    """Reports a wrong flag in one line instead of after two hundred lines of usage."""

    def error(self, message: str) -> NoReturn:
        raise ArgumentError(f"{message} - flags are those of the help - see --help")


def _renamed(word: str) -> str:
    """A word of the command line, an old flag under its new name."""
    flag, equals, value = word.partition("=")
    return RENAMED_FLAGS.get(flag, flag) + equals + value


def parse(
    argv: list[str] | None,
) -> tuple[ModelArguments, DataArguments, RerankerTrainingArguments]:
    """The arguments of a command line.

    Raises:
        ArgumentError: A flag that does not exist, is missing, or has a value that cannot be.
    """
    parser = OneLineParser(
        (ModelArguments, DataArguments, RerankerTrainingArguments),
        usage=USAGE,
        allow_abbrev=False,
    )
    argv = [_renamed(word) for word in (sys.argv[1:] if argv is None else argv)]
    parsed: Any = parser.parse_args_into_dataclasses(
        argv, return_remaining_strings=True, look_for_args_file=False
    )
    *arguments, unknown = parsed
    if unknown:
        parser.error(f"unknown arguments: {' '.join(unknown)}")
    model_args, data_args, training_args = arguments
    return model_args, data_args, training_args
