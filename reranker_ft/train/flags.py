"""Read the flags of training into its three groups of arguments."""

from __future__ import annotations

import difflib
import sys
from typing import Any, NoReturn

from transformers import HfArgumentParser

from reranker_ft.errors import ArgumentError
from reranker_ft.train.config import DataArguments, ModelArguments, RerankerTrainingArguments

USAGE = "reranker-ft train --model_name_or_path MODEL --train_data FILE... --output_dir DIR [flags]"

# Other names of flags: of transformers 4, of FlagEmbedding, of LM_Cocktail.
OTHER_NAMES = {
    "--evaluation_strategy": "--eval_strategy",
    "--no_cuda": "--use_cpu",
    "--max_len": "--max_length",
    "--max_input_length": "--max_length",
    "--query_max_len": "--query_max_length",
    "--passage_max_len": "--passage_max_length",
}


class OneLineParser(HfArgumentParser):  # type: ignore[misc]
    """Reports a wrong flag in one line instead of after two hundred lines of usage."""

    def error(self, message: str) -> NoReturn:
        raise ArgumentError(f"{message} - the help lists all flags - see --help")

    def refuse_unknown(self, words: list[str]) -> NoReturn:
        """Name the flags that do not exist, and what may be meant.

        Raises:
            ArgumentError: Always.
        """
        known = [flag for flag in self._option_string_actions if "-" not in flag[2:]]
        for word in words:
            if word.startswith("--"):
                flag = word.partition("=")[0]
                close = difflib.get_close_matches(flag, known, n=2)
                meant = f"did you mean {' or '.join(close)}?" if close else "see --help"
                raise ArgumentError(f"no such flag: {flag} - the help lists all flags - {meant}")
        self.error(f"{' '.join(words)} belongs to no flag")


def _canonical(word: str) -> str:
    """Return a word of the command line, a flag under the name that the parser knows."""
    flag, equals, value = word.partition("=")
    if not flag.startswith("--"):
        return word
    flag = "--" + flag[2:].replace("-", "_")
    return OTHER_NAMES.get(flag, flag) + equals + value


def parse(
    argv: list[str] | None,
) -> tuple[ModelArguments, DataArguments, RerankerTrainingArguments]:
    """Return the arguments of a command line.

    Raises:
        ArgumentError: A flag does not exist, is missing, or has a value that it cannot have.
    """
    parser = OneLineParser(
        (ModelArguments, DataArguments, RerankerTrainingArguments),
        usage=USAGE,
        allow_abbrev=False,
    )
    # The parser knows this form for flags that are true or false, not for those left open.
    lora = parser._option_string_actions["--use_lora"]
    lora.nargs, lora.const = "?", True
    argv = [_canonical(word) for word in (sys.argv[1:] if argv is None else argv)]
    parsed: Any = parser.parse_args_into_dataclasses(
        argv, return_remaining_strings=True, look_for_args_file=False
    )
    *arguments, unknown = parsed
    if unknown:
        parser.refuse_unknown(unknown)
    model_args, data_args, training_args = arguments
    return model_args, data_args, training_args
