"""What a training run did, as values that print and serialise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from reranker_ft.data.files import finite
from reranker_ft.notebook import html_table


@dataclass(frozen=True)
class TrainingResult:
    """A run that has ended.

    Attributes:
        output: The folder that holds the model.
        steps: Optimizer steps.
        seconds: Wall time of the training alone.
        evaluations: Of each, ``step``, ``epoch`` and what was measured: ``eval_ndcg@10`` (the
            target), ``eval_retain_ndcg@10`` (what must not be lost), their intervals, and so on.
        history: Everything that was logged, as ``history.json`` has it.
        next_command: What to run next, as it is typed.
    """

    output: str
    steps: int
    seconds: float
    evaluations: tuple[Mapping[str, Any], ...]
    history: tuple[Mapping[str, Any], ...]
    next_command: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        found: dict[str, Any] = finite(asdict(self))
        return found

    def _repr_html_(self) -> str:
        names = {"eval_ndcg@10": "target NDCG@10", "eval_retain_ndcg@10": "general NDCG@10"}
        shown = [name for name in names if any(name in entry for entry in self.evaluations)]
        rows: list[list[object]] = [["step", *(names[name] for name in shown)]]
        for entry in self.evaluations:
            figures = (
                f"{entry[name]:.3f} [{entry[f'{name}_low']:.3f}, {entry[f'{name}_high']:.3f}]"
                for name in shown
            )
            rows.append([entry["step"], *figures])
        caption = f"{self.output}: {self.steps} steps in {self.seconds:.0f} s"
        return html_table(rows, caption) + f"<p>next: <code>{self.next_command}</code></p>"
