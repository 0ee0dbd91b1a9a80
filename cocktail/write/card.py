"""The model card of a mix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cocktail.checkpoint.card import front_matter, licence_note, licences
from cocktail.plan.plan import Plan
from cocktail.version import __version__
from cocktail.write.provenance import _hub_name

CURVE_PICTURE = "curve.png"
_INHERITED = ("license", "license_name", "license_link", "language")
_HOW = {
    "linear": "The weighted average of the weights of these models, as in "
    "[LM-Cocktail](https://arxiv.org/abs/2311.13534)."
}


@dataclass(frozen=True)
class Figure:
    """A figure that was measured on the mix, as the card shows it.

    Attributes:
        dataset: what it was measured on, such as ``target (examples.jsonl)``.
        measure: such as ``ndcg@10`` or ``loss``.
        value: the mix's mean over the examples; ``base``, the base's.
        difference: of the two, with its interval.
    """

    dataset: str
    measure: str
    value: float
    base: float
    difference: str


def model_card(plan: Plan, figures: Sequence[Figure] = (), *, has_picture: bool = False) -> str:
    """The mix's README.md, with the front matter that the Hub reads.

    Args:
        figures: what a search measured, for the text and for the front matter's ``model-index``.
        has_picture: whether ``CURVE_PICTURE`` lies beside the card.
    """
    found = {k: v for checkpoint in plan.ingredients for k, v in licences(checkpoint).items()}
    note = licence_note(found)
    rows = "\n".join(
        f"| {checkpoint.reference} | {shown_weight(plan.recipe.weight_of(i))} |"
        for i, checkpoint in enumerate(plan.ingredients)
    )
    method = plan.recipe.method
    name = f"{plan.kind.name} mixed from {len(plan.ingredients)} models"
    return f"""---
{_front_matter(plan, found, differ=note is not None, figures=figures, name=name)}
---

# {name}

{_HOW.get(method.name, f"Merged by [{method.title}]({method.paper}).")} Config and tokenizer come
from {plan.donor.reference}.{f" {note[0].upper()}{note[1:]}." if note else ""}

| model | weight |
|---|---|
{rows}
{_measured(figures, has_picture=has_picture)}
Made by cocktail-mix {__version__}; to make it again,
save this as `recipe.yaml` and run `cocktail mix recipe.yaml --output DIR`:

```yaml
{plan.recipe.to_yaml()}```
"""


def _front_matter(
    plan: Plan, found: dict[str, list[str]], *, differ: bool, figures: Sequence[Figure], name: str
) -> str:
    """The card's metadata as YAML.

    Args:
        found: the licences, by the model that has them; ``differ``, whether they do.
    """
    from huggingface_hub.repocard_data import EvalResult, ModelCardData  # noqa: PLC0415

    bases = [base for checkpoint in plan.ingredients if (base := _hub_name(checkpoint))]
    front = front_matter(plan.donor.folder)
    front = {key: front[key] for key in _INHERITED if key in front}
    if differ or (found and "license" not in front):
        names = list(dict.fromkeys(name for names in found.values() for name in names))
        front = {key: value for key, value in front.items() if not key.startswith("license")}
        front["license"] = names if len(names) > 1 else names[0]
    is_sentence = plan.recipe.pooling or (plan.donor.folder / "modules.json").is_file()
    results = [
        EvalResult(
            task_type=plan.kind.pipeline_tag or plan.kind.name,
            dataset_type="custom",
            dataset_config=figure.dataset.partition(" ")[0],  # results of one config are merged
            dataset_name=figure.dataset,
            metric_type=figure.measure.replace("@", "_at_"),
            metric_name=figure.measure,
            metric_value=figure.value,
        )
        for figure in figures
    ]
    data = ModelCardData(
        base_model=list(dict.fromkeys(bases)) or None,
        base_model_relation="merge" if bases else None,
        **front,
        library_name="sentence-transformers" if is_sentence else "transformers",
        pipeline_tag=plan.kind.pipeline_tag,
        tags=["merge", "lm-cocktail", plan.kind.name],
        model_name=name if results else None,
        eval_results=results or None,
    )
    return str(data.to_yaml())


def _measured(figures: Sequence[Figure], *, has_picture: bool) -> str:
    if not figures:
        return ""
    rows = [
        f"| {f.dataset} | {f.measure} | {f.value:.4f} | {f.base:.4f} | {f.difference} |"
        for f in figures
    ]
    picture = [f"![The mixes from the base on]({CURVE_PICTURE})", ""] if has_picture else []
    return "\n".join(
        [
            "",
            "Measured on examples (95 % intervals of the difference):",
            "",
            "| examples | measure | mix | base | difference |",
            "|---|---|---|---|---|",
            *rows,
            "",
            *picture,
        ]
    )


def shown_weight(weight: Any) -> str:
    """A weight as text for a table: ``0.5``, ``base``, ``[0, 1]``, or ``-``."""
    if isinstance(weight, float):
        return f"{weight:.4g}"
    return "-" if weight is None else str(weight)
