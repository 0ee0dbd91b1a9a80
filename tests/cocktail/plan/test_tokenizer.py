"""Where the tokenizer comes from, with its stop tokens and its chat template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2
import pytest

from cocktail.errors import PlanError
from cocktail.pipeline import checked_plan, mix_to_folder
from cocktail.plan.plan import build_plan
from cocktail.plan.tokenizer import chat_template
from cocktail.recipe.recipe import make_recipe
from tests.cocktail.checkpoints import Save, load, weights

TOKENS = {f"t{i}": i for i in range(10)}


def tokenizer(folder: Path, tokens: dict[str, int], template: str | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    value = {"model": {"type": "WordLevel", "vocab": tokens}, "added_tokens": []}
    (folder / "tokenizer.json").write_text(json.dumps(value))
    settings = {} if template is None else {"chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def generation(folder: Path, **values: Any) -> None:
    (folder / "generation_config.json").write_text(json.dumps(values))


@pytest.fixture
def models(save: Save) -> list[Path]:
    return [
        tokenizer(save("base", weights(0), eos_token_id=2), TOKENS),
        tokenizer(save("tuned", weights(1), eos_token_id=2), TOKENS, "{{ tuned }}"),
    ]


def mixed(models: list[Path], out: Path, **options: Any) -> Path:
    plan = checked_plan(make_recipe(models, (0.5, 0.5), **options), out)
    mix_to_folder(plan, out, progress=False)
    return out


@pytest.mark.parametrize("is_ingredient", [True, False])
def test_the_stop_tokens_come_with_the_tokenizer(
    models: list[Path], tmp_path: Path, is_ingredient: bool
) -> None:
    source = models[1] if is_ingredient else tokenizer(tmp_path / "instruct", TOKENS, "{{ it }}")
    generation(models[0], eos_token_id=2, top_p=0.5)
    generation(source, eos_token_id=[2, 7], temperature=0.1)
    out = mixed(models, tmp_path / "out", tokenizer_source=str(source))
    found = json.loads((out / "generation_config.json").read_text())
    assert found == {"eos_token_id": [2, 7], "top_p": 0.5}
    assert chat_template(out) == ("{{ tuned }}" if is_ingredient else "{{ it }}")


def test_a_union_of_like_vocabularies_is_the_donors(models: list[Path], tmp_path: Path) -> None:
    out = mixed(models, tmp_path / "out", tokenizer_source="union")
    assert chat_template(out) is None
    assert not (out / "generation_config.json").exists()


def test_the_template_that_most_models_have(models: list[Path], tmp_path: Path, save: Save) -> None:
    out = mixed(models, tmp_path / "auto", chat_template="auto")
    assert (out / "chat_template.jinja").read_text() == "{{ tuned }}"
    out = mixed(models, tmp_path / "own", chat_template="{% for m in messages %}x{% endfor %}")
    assert chat_template(out) == "{% for m in messages %}x{% endfor %}"


def test_a_template_by_name(models: list[Path], tmp_path: Path) -> None:
    out = mixed(models, tmp_path / "out", chat_template="chatml")
    template = jinja2.Template((out / "chat_template.jinja").read_text())
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    said = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nho<|im_end|>\n"
    assert template.render(messages=messages) == said
    asked = template.render(messages=messages, add_generation_prompt=True)
    assert asked == f"{said}<|im_start|>assistant\n"


def test_a_tokenizer_of_other_ids_is_refused(models: list[Path], tmp_path: Path) -> None:
    other = tokenizer(tmp_path / "other", {"t0": 1, "t1": 0})
    for source, message in (
        (other, "gives 2 tokens different ids"),
        (tokenizer(tmp_path / "more", TOKENS | {"new": 10}), "'new' is 10 there"),
        (tmp_path / "absent", "does not exist"),
    ):
        with pytest.raises(PlanError, match=message):
            build_plan(make_recipe(models, (0.5, 0.5), tokenizer_source=str(source)))


def test_the_base_s_tokenizer_where_a_fine_tune_has_more_tokens(save: Save, tmp_path: Path) -> None:
    small = tokenizer(save("small", weights(0)), dict(list(TOKENS.items())[:8]))
    large = tokenizer(save("large", weights(1)), TOKENS)
    out = mixed([small, large], tmp_path / "out", tokenizer_source=str(small))
    assert len(json.loads((out / "tokenizer.json").read_text())["model"]["vocab"]) == 8
    name = "embeddings.word_embeddings.weight"
    expected = 0.5 * weights(0)[name][:8] + 0.5 * weights(1)[name][:8]
    assert (load(out)[name][:8] - expected).abs().max() < 1e-6


def test_slices_must_cover_all_layers(models: list[Path]) -> None:
    build_plan(make_recipe(models, (0.5, 0.5), layers=1))
    with pytest.raises(PlanError, match="base has 1 layer, but the recipe's slices cover 2"):
        build_plan(make_recipe(models, (0.5, 0.5), layers=2))
