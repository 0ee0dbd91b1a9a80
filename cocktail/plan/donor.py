"""Make a mix agree with its donor, the ingredient that provides config and tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from cocktail.checkpoint.architecture import Architecture
from cocktail.checkpoint.detect import scoring
from cocktail.checkpoint.kinds import detect_kind
from cocktail.checkpoint.model import MAIN, Checkpoint
from cocktail.errors import listed
from cocktail.plan.alignment import Alignment
from cocktail.plan.names import Names

T = TypeVar("T")


def first_donor(ingredients: Sequence[Checkpoint], base: int | None) -> int:
    """Return whose config the mix takes as far as heads and tokenizers have no say.

    That is the base, or else the first ingredient. A plain language model as the base of a first
    model that says how it reranks leaves it to that model: the mix would not be a reranker.

    Args:
        base: index of the base, if there is one.

    Raises:
        CheckpointError: a file that would show a reranker is damaged.
    """
    if base is None:
        return 0
    first = 1 if base == 0 else 0
    return first if scoring(ingredients[first]) and not scoring(ingredients[base]) else base


def require_one_donor(result: Alignment, largest: int, names: Sequence[str]) -> None:
    """The config counts the tokens of the tokenizer beside it."""
    if result.donor != largest:
        result.problems.append(
            f"the head requires the config of {names[result.donor]}, but {names[largest]} has more "
            "tokens - config and tokenizer must come from one ingredient - "
            f"add the tokens to {names[result.donor]} first, with resize_token_embeddings()"
        )
    result.notes.insert(
        0,
        f"tokenizers differ: rows are aligned by token, and the tokenizer comes from "
        f"{names[largest]}",
    )


def name_for_donor(result: Alignment, names: Names, ingredients: Sequence[Checkpoint]) -> None:
    """Name the main tensors as the class of the donor's config does."""
    _prefer_tied_head(result, names, ingredients)
    main = [name for part, name in result.sources if part == MAIN]
    has_head = bool(names.known_classes) and not all(map(names.is_body, main))
    new = {name: names.output(name, result.donor, has_head=has_head) for name in main}
    result.architecture = names.classes[result.donor] if names.classes else None
    spare = [name for name in main if _is_spare(name, new[name], names, result.architecture)]
    for name in spare:
        del result.sources[MAIN, name]
        result.runs.pop((MAIN, name), None)
    if spare and result.architecture is not None:
        result.notes.append(
            f"{listed(spare)}: left out, as {result.architecture.name}, the class of the mix, has "
            "no such tensor"
        )
    result.sources = _renamed(result.sources, new)
    result.runs = _renamed(result.runs, new)


def _prefer_tied_head(result: Alignment, names: Names, ingredients: Sequence[Checkpoint]) -> None:
    """Prefer the config of a language model to that of the same transformer without its head.

    Where the head is tied to the embedding, their tensors are the same.
    """
    own = names.classes[result.donor] if names.classes else None
    if own is None or own.has_prefix or result.problems:
        return
    for i, (asked, checkpoint) in enumerate(zip(names.classes, ingredients, strict=True)):
        kind = detect_kind(checkpoint.config, has_modules=False)
        if (
            asked is not None
            and asked.has_prefix
            and kind is not None
            and kind.ties_embeddings
            and not asked.unfilled(names.stored[i].values())
        ):
            result.donor = i
            result.notes.append(
                f"config and tokenizer come from {checkpoint.reference}, a {asked.name}: its head "
                "is tied to the embedding, which all models have"
            )
            return


def _is_spare(name: str, new: str, names: Names, asked: Architecture | None) -> bool:
    """Whether only some ingredients have the tensor, in a class other than the mix's."""
    if asked is None or asked.place(new) is not None:
        return False
    if all(name in table for table in names.tables):
        return False
    return any(c.place(name) is not None for c in names.known_classes)


def _renamed(
    found: Mapping[tuple[str, str], T], new: Mapping[str, str]
) -> dict[tuple[str, str], T]:
    return {
        (part, new[name] if part == MAIN else name): value for (part, name), value in found.items()
    }
