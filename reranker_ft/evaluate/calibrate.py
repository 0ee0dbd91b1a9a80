"""Make scores mean something: fit a scale and an offset after which sigmoid is a probability."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from huggingface_hub import snapshot_download
from scipy.optimize import minimize
from scipy.special import expit

from reranker_ft.data.examples import ExampleFiles, text_key
from reranker_ft.data.files import new_folder, new_text_file, refuse_existing
from reranker_ft.errors import ArgumentError, DataError, ModelError
from reranker_ft.evaluate.compare import scored_queries
from reranker_ft.evaluate.fold import Head, copy_model, find_head, other_formats
from reranker_ft.evaluate.metrics import METRIC_BOUNDS, Estimate, FloatArray, bootstrap_statistic
from reranker_ft.model.load import model_errors
from reranker_ft.notebook import html_table
from reranker_ft.score.reranker import Reranker

FOLDS = 5
FEWEST_QUERIES = 10
BINS = 10
"""Of equal width, for the expected calibration error."""
RECORD_FILE = "calibration.json"
# Scored again with the new head, which must give what was computed for it.
_CHECKED_QUERIES = 20


@dataclass(frozen=True)
class Reliability:
    """How far probabilities can be taken at their word, with 95 % intervals over the queries.

    Attributes:
        ece: Expected calibration error: the mean distance of a probability from the share of
            relevant passages among those with about the same one (Guo et al., 2017,
            https://arxiv.org/abs/1706.04599, equation 3, ten bins of equal width).
        f1: Of calling a passage relevant at a probability of .5 or more.
    """

    ece: Estimate
    f1: Estimate


@dataclass(frozen=True)
class Calibration:
    """A scale and an offset for the scores of a model, and what they are worth.

    Attributes:
        scale, offset: ``sigmoid(scale * score + offset)`` is the probability that a passage is
            relevant, among passages like those of the data.
        before: Of ``sigmoid(score)``.
        after: Of the calibrated probability, each query by a fit to the others.
        folds: Into which the queries were dealt for that.
        positives: How many of the ``pairs`` are relevant.
        output: The calibrated model; ``None`` where none was asked for.
        notes: What else one should know.
    """

    model: str
    data: str
    scale: float
    offset: float
    before: Reliability
    after: Reliability
    queries: int
    pairs: int
    positives: int
    folds: int
    output: str | None = None
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    def _repr_html_(self) -> str:
        rows = [["", "before", f"after ({self.folds} folds)"]]
        for label, name in (("calibration error", "ece"), ("F1 at .5", "f1")):
            values = [getattr(side, name) for side in (self.before, self.after)]
            rows.append([label, *(f"{v.mean:.3f} [{v.low:.3f}, {v.high:.3f}]" for v in values)])
        formula = f"sigmoid({self.scale:.4g} * score + {self.offset:.4g})"
        return html_table(rows, f"{self.model} on {self.data}: {formula}")


def calibrate_reranker(
    model: str | Path,
    data: str | Path,
    output: str | Path | None = None,
    *,
    overwrite: bool = False,
    max_queries: int | None = None,
    seed: int = 0,
    reranker_options: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> Calibration:
    """Fit a scale and an offset to labelled pairs, and write the model that has them in its head.

    The two are those of a logistic regression of the labels on the scores (Platt, "Probabilistic
    Outputs for Support Vector Machines", 1999). Rankings stay as they are. What they are worth is
    measured by cross-validation over queries.

    >>> found = calibrate_reranker("out", "dev.jsonl", "out-calibrated")  # doctest: +SKIP
    >>> found.before.ece.mean, found.after.ece.mean  # doctest: +SKIP

    Args:
        model: A folder, or a Hub id.
        data: JSONL of {"query", "pos", "neg"}, none of which was trained on.
        output: A new folder for the calibrated model, with all that stands beside the weights;
            ``None`` only fits and measures.
        overwrite: Replace a folder that stands there.
        max_queries: Only the first queries.
        seed: Of the folds and the intervals.
        reranker_options: Arguments of ``Reranker``.
        progress: Show a progress bar.

    Raises:
        ArgumentError: The output exists or is the model itself; or ``max_queries`` is too small.
        DataError: There are too few queries, or the scores fall where relevance rises.
        ModelError: The model does not load, or has no head that takes an offset.
    """
    options = dict(reranker_options or {})
    folder, head = Path(model), None
    if output is not None:
        refuse_existing(output, overwrite=overwrite, folder=True)
        folder = _model_folder(str(model), options.get("cache_dir"))
        _keep_apart(folder, Path(output))
        head = find_head(folder)
    examples = ExampleFiles([data], negatives_required=True)[:max_queries]
    reranker = Reranker(model, **options)
    label = f"{model} on {data}" if progress else ""
    scores, labels = scored_queries(reranker, examples, progress=label)
    found = replace(
        fit_queries([example.query for example in examples], scores, labels, seed=seed),
        model=str(model),
        data=str(data),
    )
    if output is None or head is None:
        return found
    found = replace(found, output=str(output), notes=_notes(folder, head))
    with new_folder(output, overwrite=overwrite) as written:
        copy_model(folder, written)
        fold_into(written, found)
        checked = examples[:_CHECKED_QUERIES]
        again, _ = scored_queries(Reranker(written, **options), checked)
        _require_scores(str(model), again, scores[: len(checked)], found, head)
    return found


def fold_into(folder: Path, found: Calibration) -> None:
    """Change the head of the model in a folder, and record it beside the weights.

    Raises:
        ModelError: The model has no head that takes an offset.
    """
    find_head(folder).fold(folder, found.scale, found.offset)
    with new_text_file(folder / RECORD_FILE, overwrite=True) as file:
        file.write(json.dumps({**found.to_dict(), "output": None}, indent=2) + "\n")


def fit_queries(
    queries: Sequence[str],
    scores: Sequence[npt.NDArray[np.floating]],
    labels: Sequence[npt.NDArray[np.integer]],
    *,
    seed: int = 0,
) -> Calibration:
    """Fit to N scored queries, and measure by cross-validation what the fit is worth.

    Args:
        queries: Their texts; equal ones stay in one fold.
        scores, labels: Of each query's passages, shape (P,); a label above 0 is relevant.

    Returns:
        The calibration of a model that has no name yet.

    Raises:
        DataError: There are too few queries, no irrelevant passage, or scores that do not rise
            with relevance.
    """
    keys = np.unique([text_key(query) for query in queries], return_inverse=True)[1]
    distinct = int(keys.max(initial=-1)) + 1
    if distinct < FEWEST_QUERIES:
        raise DataError(
            [
                f"{distinct} different queries - a calibration is fitted to some and measured on "
                f"others, of {FEWEST_QUERIES} at least - give more"
            ]
        )
    raw = [np.asarray(values, dtype=np.float64) for values in scores]
    relevant = [np.asarray(grades) > 0 for grades in labels]
    scale, offset = fit(np.concatenate(raw), np.concatenate(relevant))
    if scale <= 0:
        raise DataError(
            [
                f"the fitted scale is {scale:.3g}: relevant passages score no higher than others "
                "- a calibration keeps the ranking, so its scale is above 0 - look at the labels, "
                "or train the model"
            ]
        )
    fold_of = np.random.default_rng(seed).permutation(distinct)[keys] % FOLDS  # (N,)
    held_out: list[FloatArray] = [np.empty(0)] * len(raw)
    for fold in range(FOLDS):
        others = np.flatnonzero(fold_of != fold)
        a, b = fit(*(np.concatenate([rows[i] for i in others]) for rows in (raw, relevant)))
        for i in np.flatnonzero(fold_of == fold):
            held_out[i] = expit(a * raw[i] + b)
    return Calibration(
        model="",
        data="",
        scale=scale,
        offset=offset,
        before=reliability([expit(values) for values in raw], relevant, seed=seed),
        after=reliability(held_out, relevant, seed=seed),
        queries=len(raw),
        pairs=sum(map(len, raw)),
        positives=int(sum(rows.sum() for rows in relevant)),
        folds=FOLDS,
    )


def fit(scores: FloatArray, relevant: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """Return the scale and offset of the logistic regression of (N,) labels on (N,) scores.

    The targets are Platt's, a little inside 0 and 1, so that separable data have a finite fit.

    Raises:
        DataError: All passages are relevant or none is, or all scores are alike or not finite.
    """
    positives = int(relevant.sum())
    negatives = len(relevant) - positives
    center, spread = scores.mean(), scores.std()
    if not (positives and negatives and 0 < spread < np.inf):
        raise DataError(
            [
                f"{positives} relevant and {negatives} other passages, with scores that spread by "
                f"{spread:.3g} - a calibration needs both, and scores that differ - look at the "
                "data and the model"
            ]
        )
    targets = np.where(relevant, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    columns = np.stack([(scores - center) / spread, np.ones_like(scores)])  # (2, N)

    def loss(weights: FloatArray) -> tuple[float, FloatArray]:
        logits = weights @ columns
        slopes = expit(logits) - targets
        return float((np.logaddexp(0, logits) - targets * logits).mean()), columns @ slopes / len(
            targets
        )

    def curvature(weights: FloatArray) -> FloatArray:
        shares = expit(weights @ columns)
        matrix: FloatArray = (columns * (shares * (1 - shares))) @ columns.T / len(targets)
        return matrix

    found = minimize(
        loss, np.array([1.0, 0.0]), jac=True, hess=curvature, method="trust-exact", tol=1e-9
    ).x
    return float(found[0] / spread), float(found[1] - found[0] * center / spread)


def reliability(
    probabilities: Sequence[FloatArray],
    relevant: Sequence[npt.NDArray[np.bool_]],
    *,
    seed: int = 0,
) -> Reliability:
    """Measure N queries' probabilities, shape (P,) each, against what is relevant."""
    rows = np.zeros((len(probabilities), BINS + 3))
    for row, values, labels in zip(rows, probabilities, relevant, strict=True):
        bins = np.minimum((values * BINS).astype(int), BINS - 1)
        row[:BINS] = np.bincount(bins, weights=values - labels, minlength=BINS)
        called = values >= 0.5
        row[BINS:] = len(values), (called & labels).sum(), (called != labels).sum()
    return Reliability(
        ece=bootstrap_statistic(rows, _ece, seed=seed, bounds=METRIC_BOUNDS, reflected=True),
        f1=bootstrap_statistic(rows, _f1, seed=seed, bounds=METRIC_BOUNDS),
    )


def _ece(means: FloatArray) -> FloatArray:
    """Return the calibration error from (..., BINS) gaps, and the number of passages behind."""
    error: FloatArray = np.abs(means[..., :BINS]).sum(axis=-1) / means[..., BINS]
    return error


def _f1(means: FloatArray) -> FloatArray:
    """Return F1 from true positives and wrong calls; 0 where nothing is called or relevant."""
    hits, wrong = means[..., BINS + 1], means[..., BINS + 2]
    share: FloatArray = 2 * hits / np.maximum(2 * hits + wrong, np.finfo(float).tiny)
    return share


def _model_folder(model: str, cache_dir: str | None) -> Path:
    """Return the folder of a model, which comes from the Hub if there is none of that name."""
    if Path(model).is_dir():
        return Path(model)
    with model_errors(model, cache_dir):
        return Path(snapshot_download(model, cache_dir=cache_dir))


def _keep_apart(folder: Path, output: Path) -> None:
    place, source = (Path(os.path.realpath(path)) for path in (output, folder))
    if place == source or place.is_relative_to(source) or source.is_relative_to(place):
        raise ArgumentError(
            f"the output {output} and the model {folder} overlap - a model is calibrated in a copy "
            "- use another folder"
        )


def _notes(folder: Path, head: Head) -> tuple[str, ...]:
    notes = []
    if head.weight.dtype.itemsize < torch.float32.itemsize:
        notes.append(
            f"the head is stored in {str(head.weight.dtype).removeprefix('torch.')}: its new "
            "weights are rounded, so passages with nearly the same score may change places"
        )
    left = other_formats(folder)
    if left:
        notes.append(f"not copied, as the scores there are not calibrated: {', '.join(left)}")
    if (folder / "cocktail.json").is_file():
        notes.append(
            "cocktail.json tells of the mix before its calibration; `cocktail verify` says that "
            "the weights have changed since"
        )
    return tuple(notes)


def _require_scores(
    name: str,
    again: Sequence[npt.NDArray[np.floating]],
    before: Sequence[npt.NDArray[np.floating]],
    found: Calibration,
    head: Head,
) -> None:
    """Make sure that the copy gives the scores that its head was computed for."""
    expected = found.scale * np.concatenate(before).astype(np.float64) + found.offset
    gap = float(np.abs(np.concatenate(again) - expected).max())
    # Rounding of the head, and that of a forward in half precision, both relative.
    width = max(1.0, float(np.abs(expected).max()), abs(found.offset))
    rounding = 1e-3 if head.weight.dtype.itemsize >= torch.float32.itemsize else 5e-2
    if not gap <= rounding * width:
        raise ModelError(
            f"with the new head {name} gives scores that are off by {gap:.3g} - what its head "
            "gives must be the score itself - apply sigmoid(scale * score + offset) where its "
            "scores are used (without an output the two are printed)"
        )
