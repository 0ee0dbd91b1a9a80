"""Convert a model, and compare its scores before and after."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from cocktail.checkpoint.detect import kind_of
from cocktail.checkpoint.kinds import KINDS, STACK_RERANKER
from cocktail.checkpoint.resolve import resolve
from cocktail.measure.tasks.examples import read_ranked
from cocktail.measure.tasks.reranker import add_logit_score, pair_scores, scoring_record
from cocktail.system.notebook import html_table
from cocktail.write.convert import convert

# Where none are given: enough to see that two models score alike.
_PAIRS = [
    ("what is a panda?", "The giant panda is a bear that lives in China."),
    ("what is a panda?", "Paris is the capital of France."),
    ("capital of France", "Paris is the capital of France."),
    ("who wrote Faust?", "Goethe worked on Faust for sixty years. " * 20),
]


Form = Literal["sequence-classification", "module-stack"]


@dataclass(frozen=True)
class Conversion:
    """A model in another form.

    Attributes:
        output: the new folder.
        form: that it has.
        pairs: how many were scored.
        before, after: their scores, in one order.
        largest_difference: between the two.
    """

    output: str
    form: str
    pairs: int
    before: tuple[float, ...]
    after: tuple[float, ...]
    largest_difference: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "before": list(self.before), "after": list(self.after)}

    def _repr_html_(self) -> str:
        scores = list(zip(self.before, self.after, strict=True))[:10]
        rows = [(number, f"{a:.6f}", f"{b:.6f}") for number, (a, b) in enumerate(scores)]
        caption = f"{self.output}: largest difference {self.largest_difference:.1e}"
        return html_table([("pair", "before", "after"), *rows], caption)


def convert_model(
    model: str | Path,
    output: str | Path,
    *,
    to: Form = "sequence-classification",
    pairs: str | Path | None = None,
    overwrite: bool = False,
) -> Conversion:
    """Write a reranker in another form that scores the same, as ``cocktail convert`` does.

    A language model becomes a classifier whose head is the row of "yes" minus the row of "no" of
    its output embedding. A stack of modules becomes the classifier that does the same, and back.
    The scores of some pairs are compared before and after.

    Args:
        model: a local folder or a Hub id.
        output: the new folder.
        to: the form to write: a ``*ForSequenceClassification`` with one logit, or the modules that
            sentence-transformers 6 stores.
        pairs: JSONL of ``{"query", "pos", "neg"}`` to compare the scores of; a few of our own by
            default.
        overwrite: replace a model that stands at the output.

    Raises:
        CheckpointError: the model has this form already, or no such form scores the same.
        OutputError: something stands at the output, or it cannot be written.
    """
    compared = list(_PAIRS)
    if pairs is not None:
        examples = read_ranked(pairs, negatives=None, seed=0)
        compared = [(e.query, text) for e in examples for text in e.passages]
    checkpoint = resolve(str(model))
    has_head = kind_of(checkpoint) in (KINDS["reranker"], STACK_RERANKER)
    record = None if has_head else scoring_record(checkpoint.folder)
    before = pair_scores(checkpoint.folder, compared)
    convert(
        checkpoint,
        Path(output),
        to,
        record=record,
        finish=None if record is None else partial(add_logit_score, record=record),
        overwrite=overwrite,
    )
    after = pair_scores(Path(output), compared)
    largest = max(abs(a - b) for a, b in zip(before, after, strict=True))
    return Conversion(str(output), to, len(compared), tuple(before), tuple(after), largest)
