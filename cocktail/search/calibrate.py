"""After a search: calibrate the mixed reranker, so that sigmoid(score) is a probability."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cocktail.errors import RecipeError
from cocktail.plan.plan import Plan


def check_calibration(plan: Plan, data: str) -> None:
    """Refuse before the search what could not be calibrated after it.

    Args:
        plan: of any mix of the models.
        data: a file of labelled pairs.

    Raises:
        RecipeError: the models are no rerankers, or their head takes no offset; or there is no
            such file.
    """
    if plan.kind.name != "reranker":
        raise RecipeError(
            f"calibrate is given for models of kind {plan.kind.name} - probabilities are made of "
            "the scores of rerankers - leave it out"
        )
    shapes = {tensor.key: tensor.shape for tensor in plan.tensors}
    if not any(
        key.endswith("weight")
        and shape[:1] == (1,)
        and shapes.get(f"{key.removesuffix('weight')}bias") == (1,)
        for key, shape in shapes.items()
    ):
        raise RecipeError(
            "calibrate is given and the head of these models has no bias - the offset of their "
            "scores goes there - leave it out; `reranker-ft calibrate` prints scale and offset"
        )
    if not Path(data).is_file():
        raise RecipeError(f"calibrate is {data}, which is no file - it holds pairs - fix the path")
    if find_spec("pytrec_eval") is None:
        raise RecipeError(
            "calibrate is given and pytrec_eval is not installed - evaluation needs it - "
            "pip install '.[train]' in a clone of this repository"
        )


class Calibrator:
    """Calibrates the model in a staged folder, and remembers what it found.

    Args:
        data: a file of labelled pairs.
        output: what the folder will be called.
        options: of the reranker that scores them, such as ``max_length``.
    """

    def __init__(self, data: str, output: Path, **options: Any) -> None:
        self.data = data
        self.output = output
        self.options = options
        self.found: dict[str, Any] | None = None

    def __call__(self, folder: Path) -> dict[str, Any]:
        """Calibrate; return what the record of the mix says of it."""
        from cocktail.measure.tasks.reranker import calibrate_folder  # noqa: PLC0415 - torch

        found = calibrate_folder(folder, self.data, **self.options)
        self.found = {**found, "model": str(self.output), "output": str(self.output)}
        return {key: found[key] for key in ("data", "scale", "offset")}

    def sentence(self) -> str:
        """What the terminal shows."""
        if self.found is None:
            return ""
        parts = []
        for name, key in (("calibration error", "ece"), ("F1 at .5", "f1")):
            before, after = (self.found[side][key] for side in ("before", "after"))
            parts.append(f"{name} {_interval(before)} before, {_interval(after)} after")
        return f"calibrated on {self.data}: {'; '.join(parts)} (95 % intervals)"


def _interval(value: dict[str, float]) -> str:
    return f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
