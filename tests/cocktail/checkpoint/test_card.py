"""What models say of their licences, and what a mix of them says."""

from __future__ import annotations

from pathlib import Path

import pytest

from cocktail.checkpoint.card import front_matter, licences
from cocktail.checkpoint.resolve import resolve
from cocktail.pipeline import checked_plan, mix_to_folder
from cocktail.recipe.recipe import make_recipe
from tests.cocktail.checkpoints import Save, weights


def licensed(folder: Path, text: str) -> Path:
    (folder / "README.md").write_text(f"---\n{text}\n---\n# A model\n")
    return folder


@pytest.mark.parametrize(
    ("cards", "expected", "is_noted"),
    [
        (["license: apache-2.0", "license: cc-by-nc-4.0"], ["apache-2.0", "cc-by-nc-4.0"], True),
        (["license: mit", "license: mit"], "mit", False),
        (["license: mit", "tags: [x]"], "mit", False),
        (["tags: [x]", "license: llama3"], "llama3", False),
        (["license: mit", "license: other\nlicense_name: own"], ["mit", "own"], True),
        (["license: [mit, bsd]", "license: [bsd, mit]"], ["mit", "bsd"], False),
    ],
)
def test_the_card_names_every_licence(
    save: Save, tmp_path: Path, cards: list[str], expected: str | list[str], is_noted: bool
) -> None:
    models = [licensed(save(f"m{i}", weights(i)), text) for i, text in enumerate(cards)]
    plan = checked_plan(make_recipe(models, (0.5, 0.5)), tmp_path / "out")
    mix_to_folder(plan, tmp_path / "out", progress=False)
    assert front_matter(tmp_path / "out")["license"] == expected
    assert any("licences differ" in note for note in plan.notes) is is_noted
    body = (tmp_path / "out" / "README.md").read_text()
    assert ("Licences differ" in body) is is_noted


@pytest.mark.parametrize("text", ["# no front matter", "---\n[\n---\n", "---\n- 1\n---\n", ""])
def test_cards_that_say_nothing(save: Save, text: str) -> None:
    folder = save("a", weights(0))
    (folder / "README.md").write_text(text)
    assert front_matter(folder) == {}
    assert licences(resolve(folder)) == {}
