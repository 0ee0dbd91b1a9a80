"""Add a teacher's scores to the passages of training data."""

from __future__ import annotations

from pathlib import Path

from reranker_ft.data.examples import ExampleFiles
from reranker_ft.data.files import existing_file, refuse_existing
from reranker_ft.score.records import score_file
from reranker_ft.score.reranker import Reranker


def add_teacher_scores(
    teacher: Reranker,
    input_file: str | Path,
    output_file: str | Path,
    *,
    overwrite: bool = False,
    progress: bool = False,
) -> dict[str, int]:
    """Copy training data with "pos_scores" and "neg_scores", the teacher's raw scores.

    Training with ``--knowledge_distillation True`` reads them. Scores that stand there already are
    replaced.

    Args:
        teacher: A reranker, as a rule larger than the model to train.
        input_file: Lines of {"query", "pos", "neg"}.
        output_file: The same lines with scores; it appears once it is complete.

    Returns:
        The numbers of "lines" and "pairs" scored.

    Raises:
        ArgumentError: The input is missing, or the output exists and ``overwrite`` is false.
        DataError: Lines of the input are not training examples.
    """
    refuse_existing(output_file, overwrite=overwrite)
    ExampleFiles([existing_file(input_file)])
    return score_file(teacher, input_file, output_file, overwrite=overwrite, progress=progress)
