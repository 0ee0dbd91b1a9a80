"""The model card of a mix."""

from __future__ import annotations

from typing import Any

import yaml

from cocktail.checkpoint.card import front_matter, licence_note, licences
from cocktail.plan.plan import Plan
from cocktail.version import __version__
from cocktail.write.provenance import _hub_name

_INHERITED = ("license", "license_name", "license_link", "language")
_HOW = {
    "linear": "The weighted average of the weights of these models, as in "
    "[LM-Cocktail](https://arxiv.org/abs/2311.13534)."
}


def model_card(plan: Plan) -> str:
    """The mix's README.md, with the front matter that the Hub reads."""
    front: dict[str, Any] = {}
    bases = [name for checkpoint in plan.ingredients if (name := _hub_name(checkpoint))]
    if bases:
        front["base_model"] = list(dict.fromkeys(bases))
        front["base_model_relation"] = "merge"
    inherited = front_matter(plan.donor.folder)
    front |= {key: inherited[key] for key in _INHERITED if key in inherited}
    found = {k: v for checkpoint in plan.ingredients for k, v in licences(checkpoint).items()}
    note = licence_note(found)
    if note is not None or (found and "license" not in front):
        names = list(dict.fromkeys(name for names in found.values() for name in names))
        front = {key: value for key, value in front.items() if not key.startswith("license")}
        front["license"] = names if len(names) > 1 else names[0]
    is_sentence = plan.recipe.pooling or (plan.donor.folder / "modules.json").is_file()
    front["library_name"] = "sentence-transformers" if is_sentence else "transformers"
    front["pipeline_tag"] = plan.kind.pipeline_tag
    front["tags"] = ["merge", "lm-cocktail", plan.kind.name]
    rows = "\n".join(
        f"| {checkpoint.reference} | {shown_weight(plan.recipe.weight_of(i))} |"
        for i, checkpoint in enumerate(plan.ingredients)
    )
    method = plan.recipe.method
    return f"""---
{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---

# {plan.kind.name} mixed from {len(plan.ingredients)} models

{_HOW.get(method.name, f"Merged by [{method.title}]({method.paper}).")} Config and tokenizer come
from {plan.donor.reference}.{f" {note[0].upper()}{note[1:]}." if note else ""}

| model | weight |
|---|---|
{rows}

Made by cocktail-mix {__version__}; to make it again,
save this as `recipe.yaml` and run `cocktail mix recipe.yaml --output DIR`:

```yaml
{plan.recipe.to_yaml()}```
"""


def shown_weight(weight: Any) -> str:
    """A weight as text for a table: ``0.5``, ``base``, ``[0, 1]``, or ``-``."""
    if isinstance(weight, float):
        return f"{weight:.4g}"
    return "-" if weight is None else str(weight)
