"""Record what a mix was made of, so that it can be remade and verified."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cocktail.checkpoint.card import front_matter
from cocktail.checkpoint.folder import read_json
from cocktail.checkpoint.hub import hub_digests, parse_identifier
from cocktail.checkpoint.model import Checkpoint, tensor_key
from cocktail.errors import CheckpointError
from cocktail.mix.digests import METHOD, join_tensors
from cocktail.mix.stream import Digests
from cocktail.plan.plan import Plan
from cocktail.tensors.dtypes import torch_name
from cocktail.version import __version__

PROVENANCE_FILE = "cocktail.json"


def provenance(plan: Plan, digests: Digests) -> dict[str, Any]:
    """The content of ``cocktail.json``: the recipe, what went in, what came out."""
    ingredients = []
    for i, (checkpoint, read) in enumerate(zip(plan.ingredients, digests.inputs, strict=True)):
        names = [
            tensor_key(path, info.name)
            for path, part in checkpoint.parts.items()
            for info in part.tensors.values()
        ]
        # An alias shares another tensor's memory, which counts once.
        counted = {name: read[name] for name in names if name in read}
        entry: dict[str, Any] = {
            "model": checkpoint.reference,
            "weight": plan.recipe.weight_of(i),
            "digest": join_tensors(counted) if counted else None,
            "left_out": [name for name in names if name not in counted] if counted else [],
        }
        if checkpoint.adaption is not None:
            # Later the adapter's config may name another base.
            entry["opened"] = checkpoint.pinned
        if checkpoint.commit is not None:
            entry |= {"commit": checkpoint.commit, "sha256": hub_digests(checkpoint.folder)}
        ingredients.append(entry)
    output = join_tensors(digests.outputs)
    return {
        "recipe": plan.recipe.to_dict(),
        **({"steps": [step.to_dict() for step in plan.recipe.steps]} if plan.recipe.steps else {}),
        "model_type": plan.kind.name,
        **({"data_sha256": plan.data_sha256} if plan.data_sha256 else {}),
        "ingredients": ingredients,
        "output": {"digest": output, "bytes": plan.output_bytes, "dtype": torch_name(plan.dtype)},
        "digest_method": METHOD,
        "notes": list(plan.notes),
        "versions": {"cocktail-mix": __version__, "python": platform.python_version()},
    }


def file_metadata(plan: Plan) -> dict[str, str]:
    """The metadata of every safetensors file."""
    return {"format": "pt", "cocktail": plan.recipe.to_yaml()}


def read_provenance(folder: Path) -> Mapping[str, Any]:
    """Read ``cocktail.json``.

    Raises:
        CheckpointError: it is missing or is not what a mix writes.
    """
    path = folder / PROVENANCE_FILE
    if not path.is_file():
        raise CheckpointError(
            f"{folder}: has no {PROVENANCE_FILE} - only a mix made by cocktail can be verified - "
            "name the output of `cocktail mix`"
        )
    value = read_json(path)
    try:
        for entry in value["ingredients"]:
            entry["model"], entry["digest"], entry["left_out"]
        value["output"]["digest"]
    except (KeyError, TypeError):
        raise CheckpointError(
            f"{path}: is not what cocktail writes - mix the model again"
        ) from None
    return value


def _hub_name(checkpoint: Checkpoint) -> str | None:
    """An ingredient's Hub id; for a local fine-tune, the id that its card names as base."""
    if checkpoint.adaption is not None:
        return _hub_name(checkpoint.adaption.base)
    if checkpoint.commit is not None:
        identifier = parse_identifier(checkpoint.reference)
        return identifier[0] if identifier else None
    base = front_matter(checkpoint.folder).get("base_model")
    name = base[0] if isinstance(base, list) and base else base
    return name if isinstance(name, str) and parse_identifier(name) else None
