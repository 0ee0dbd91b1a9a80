"""Where a mix's tokenizer comes from, and what comes with it: stop tokens and chat template."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cocktail.checkpoint.folder import locate, read_json
from cocktail.checkpoint.model import Checkpoint
from cocktail.checkpoint.vocabulary import read_vocabulary
from cocktail.errors import CheckpointError, counted, listed
from cocktail.plan.vocabularies import Vocabularies
from cocktail.recipe.chat_templates import CHAT_TEMPLATES
from cocktail.recipe.recipe import Recipe

GENERATION_CONFIG = "generation_config.json"
TEMPLATE = "chat_template.jinja"
_STOPS = ("eos_token_id", "bos_token_id", "pad_token_id", "stop_strings")


@dataclass
class TokenizerChoice:
    """The tokenizer of a mix.

    Attributes:
        folder: the folder that its files come from; ``None`` for the donor's.
        texts: files to write beside them, by their path in the output.
        problems: why it cannot be used, one line each.
        notes: what was decided, one line each.
    """

    folder: Path | None = None
    texts: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def choose_tokenizer(
    recipe: Recipe,
    ingredients: Sequence[Checkpoint],
    donor: Checkpoint,
    vocabularies: Vocabularies,
) -> TokenizerChoice:
    """Choose the tokenizer, from the files in folders alone.

    Args:
        donor: the ingredient that provides the config.
        vocabularies: those of the ingredients.
    """
    choice = TokenizerChoice()
    source = recipe.tokenizer_source
    if source == "union" or source is None:
        pass  # the donor's holds all tokens, or else the vocabularies contradict each other
    elif source in recipe.ingredients:
        _take_ingredients(
            choice, ingredients[recipe.ingredients.index(source)], donor, vocabularies
        )
    else:
        _take_others(choice, source, donor)
    place = donor.main_folder.relative_to(donor.folder)
    if choice.folder is not None:
        _keep_stops(choice, choice.folder, donor, place)
    if recipe.chat_template is not None:
        _set_template(choice, recipe.chat_template, ingredients, place)
    return choice


def _take_ingredients(
    choice: TokenizerChoice, source: Checkpoint, donor: Checkpoint, vocabularies: Vocabularies
) -> None:
    if vocabularies.grew and source is not donor:
        choice.problems.append(
            f"the tokenizer comes from {source.reference} and the config from {donor.reference}, "
            "but their vocabularies differ - a config must count the tokens of the tokenizer "
            f"beside it - name {source.reference} first, or as the base"
        )
    if source is not donor:
        choice.folder = source.main_folder


def _take_others(choice: TokenizerChoice, source: str, donor: Checkpoint) -> None:
    """Take the tokenizer of a folder outside the mix, if its ids mean the same tokens."""
    try:
        folder, _ = locate(source)
        theirs, ours = read_vocabulary(folder), read_vocabulary(donor.main_folder)
    except CheckpointError as error:
        choice.problems.append(
            f"tokenizer_source {error} - it must be base, union, one of the models, or another "
            "folder or Hub id"
        )
        return
    clashes = [f"{t!r} is {i} there" for t, i in theirs.items() if ours.get(t, -1) != i]
    if not theirs:
        choice.problems.append(
            f"{source}: has no vocabulary that can be compared with {donor.reference}'s - the same "
            "token must have the same id - save its tokenizer as tokenizer.json"
        )
    elif ours and clashes:
        choice.problems.append(
            f"the tokenizer of {source} gives {counted(len(clashes), 'token')} different ids "
            f"from {donor.reference}'s ({listed(clashes, 3)}) - a row of the embedding must mean "
            "the same token - choose the tokenizer of one of the models"
        )
    else:
        choice.folder = folder


def _keep_stops(choice: TokenizerChoice, source: Path, donor: Checkpoint, place: Path) -> None:
    """Make generation stop where the tokenizer's own model stops, as its template expects."""
    theirs, ours = _generation(source), _generation(donor.main_folder)
    stops = {key: theirs[key] for key in _STOPS if theirs.get(key) not in (None, ours.get(key))}
    if stops:
        path = donor.main_folder / GENERATION_CONFIG
        own = read_json(path) if path.is_file() else {"_from_model_config": False}
        text = json.dumps({**own, **stops}, indent=2, ensure_ascii=False) + "\n"
        choice.texts[(place / GENERATION_CONFIG).as_posix()] = text
        choice.notes.append(f"{', '.join(stops)} in {GENERATION_CONFIG} come with the tokenizer")


def _generation(folder: Path) -> dict[str, Any]:
    """The token ids that a folder's configs name; the generation config goes first."""
    found: dict[str, Any] = {}
    for name in ("config.json", GENERATION_CONFIG):
        if (folder / name).is_file():
            values = read_json(folder / name)
            found |= {key: values[key] for key in _STOPS if values.get(key) is not None}
    return found


def _set_template(
    choice: TokenizerChoice, wanted: str, ingredients: Sequence[Checkpoint], place: Path
) -> None:
    text: str | None = CHAT_TEMPLATES.get(wanted, wanted)
    if wanted == "auto":
        texts = [chat_template(checkpoint.main_folder) for checkpoint in ingredients]
        counts = Counter(found for found in texts if found)
        if not counts:
            choice.notes.append("chat_template is auto, but no model has one; none is written")
            return
        text = counts.most_common(1)[0][0]
        whose = ingredients[texts.index(text)].reference
        choice.notes.append(f"the chat template comes from {whose}")
    choice.texts[(place / TEMPLATE).as_posix()] = str(text)


def chat_template(folder: Path) -> str | None:
    """The template that a tokenizer was saved with; of several, the one called default."""
    if (folder / TEMPLATE).is_file():
        return (folder / TEMPLATE).read_text(encoding="utf-8")
    for name in ("tokenizer_config.json", "chat_template.json"):
        value = read_json(folder / name).get("chat_template") if (folder / name).is_file() else None
        if isinstance(value, list):
            named = {item.get("name"): item.get("template") for item in value if _is_map(item)}
            value = named.get("default")
        if isinstance(value, str):
            return value
    return None


def _is_map(value: object) -> bool:
    return isinstance(value, Mapping)
