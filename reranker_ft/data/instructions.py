"""Put instructions around queries and passages."""

from __future__ import annotations

from dataclasses import dataclass

from reranker_ft.errors import ArgumentError


@dataclass(frozen=True)
class Instructions:
    """What is put around queries and passages before they are tokenized.

    A format has two places: the instruction, then the text. Without an instruction the text stays
    as it is.

    Raises:
        ArgumentError: A format does not have two places.
    """

    query: str | None = None
    query_format: str = "{}{}"
    passage: str | None = None
    passage_format: str = "{}{}"

    def __post_init__(self) -> None:
        for name, template in (
            ("query_instruction_format", self.query_format),
            ("passage_instruction_format", self.passage_format),
        ):
            try:
                fits = template.format("\0", "\1").count("\1") == 1
            except (IndexError, KeyError, ValueError):
                fits = False
            if not fits:
                raise ArgumentError(
                    f"{name} is {template!r} - it has two places, the instruction's and the "
                    "text's - write it like '{}{}'"
                )

    def of_query(self, text: str, instruction: str | None = None) -> str:
        """Return the query with its instruction; that of its line takes precedence."""
        return _instruct(self.query_format, instruction or self.query, text)

    def of_passage(self, text: str, instruction: str | None = None) -> str:
        """Return the passage with its instruction; that of its line takes precedence."""
        return _instruct(self.passage_format, instruction or self.passage, text)


def _instruct(template: str, instruction: str | None, text: str) -> str:
    if instruction is None:
        return text
    # A shell passes \n as two characters.
    return template.replace("\\n", "\n").format(instruction, text)
