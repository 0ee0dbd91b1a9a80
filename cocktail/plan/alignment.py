"""What the output's tensors are made of: the result of matching the ingredients' tensors."""

from __future__ import annotations

from dataclasses import dataclass, field

from cocktail.checkpoint.architecture import Architecture
from cocktail.plan.vocabularies import Run
from cocktail.tensors.info import TensorInfo


@dataclass(frozen=True, slots=True)
class Source:
    """A tensor that goes into an output tensor, with its weight (1 until the plan sets it)."""

    info: TensorInfo
    weight: float
    ingredient: int


@dataclass
class Alignment:
    """What ``align_parts`` found.

    Attributes:
        sources: by part and name, in the order of the first ingredient's files.
        runs: for tensors whose rows are aligned by token, the rows of the sources behind each row.
        donor: index of the ingredient that provides config and tokenizer.
        architecture: the class that its config names, where it had to be asked.
    """

    sources: dict[tuple[str, str], tuple[Source, ...]] = field(default_factory=dict)
    runs: dict[tuple[str, str], list[Run]] = field(default_factory=dict)
    donor: int = 0
    architecture: Architecture | None = None
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
