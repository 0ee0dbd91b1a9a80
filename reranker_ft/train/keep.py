"""After training: choose the mix of base and fine-tune that keeps general ability.

The search is the other package's, which this one never imports: it runs as a process of its own,
``python -m cocktail search``, once the fine-tune is safe on disk.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np

from reranker_ft.data.examples import Example, ExampleFiles, text_key
from reranker_ft.data.instructions import Instructions
from reranker_ft.errors import ArgumentError, DataError, RerankerError
from reranker_ft.train.output_folder import (
    CHOICE_REPORT,
    FINE_TUNED,
    HELD_OUT,
    KEPT,
    holds_weights,
)

logger = logging.getLogger(__name__)

HELD_OUT_SHARE = 0.2
MOST_HELD_OUT = 100
FEWEST_HELD_OUT = 8
MOST_NEGATIVES = 7
"""Of each query, in the search."""
_OF_A_GROUP = re.compile(r"(RANK|WORLD_SIZE|LOCAL_.*|MASTER_.*|GROUP_.*|ROLE_.*|TORCHELASTIC_.*)")


class Part(Sequence[Example]):
    """Some of the examples, in the order of their indices."""

    def __init__(self, examples: Sequence[Example], indices: Sequence[int]) -> None:
        self._examples = examples
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self._examples[i] for i in self._indices[index]]
        return self._examples[self._indices[index]]

    def __iter__(self) -> Iterator[Example]:
        return (self._examples[i] for i in self._indices)


def hold_out(examples: Sequence[Example], seed: int) -> tuple[Part, Part]:
    """Split off a fifth of the queries, ``MOST_HELD_OUT`` at most, each with all its lines.

    Returns:
        What is trained on, and what is held out.

    Raises:
        DataError: There are too few queries to hold some out.
    """
    keys = np.array([text_key(example.query) for example in examples], dtype=np.uint64)
    queries = np.unique(keys)
    count = min(MOST_HELD_OUT, round(HELD_OUT_SHARE * len(queries)))
    if count < FEWEST_HELD_OUT:
        raise DataError(
            [
                f"train_data has {len(queries)} queries - a fifth of them is held out to choose a "
                f"mix by, {FEWEST_HELD_OUT} at least - give more, or held-out ones (--eval_data)"
            ]
        )
    chosen = np.random.default_rng(seed).permutation(queries)[:count]
    held_out = np.isin(keys, chosen)
    return (
        Part(examples, np.flatnonzero(~held_out).tolist()),
        Part(examples, np.flatnonzero(held_out).tolist()),
    )


def read_kept(keep: str | None, keep_text: str | None, seed: int) -> Sequence[Example] | None:
    """Return the labelled examples that must not be lost; refuse what cannot be searched with.

    Args:
        keep: A file, or the name of a reranking or retrieval task of mteb or of a benchmark, of
            which as many queries are drawn as are held out at most.

    Raises:
        ArgumentError: Both are given, a file is not there, or mteb has nothing of this name.
        DataError: Lines of ``keep`` break the format, or its task cannot be loaded.
    """
    if keep and keep_text:
        raise ArgumentError(
            "keep and keep_text are both given - one of them says what must not be lost - give "
            "labelled examples (--keep), or text without labels (--keep_text)"
        )
    if keep:
        if is_benchmark(keep):
            return _of_benchmark(keep, seed)
        return ExampleFiles([keep], negatives_required=True)
    if keep_text and not Path(keep_text).is_file():
        raise ArgumentError(f"keep_text {keep_text} is no file - it holds passages - fix the path")
    return None


def is_benchmark(keep: str) -> bool:
    """Whether this can only be a name of mteb: it is no path, and no file has it."""
    return not (os.sep in keep or Path(keep).suffix or Path(keep).exists())


def _of_benchmark(name: str, seed: int) -> list[Example]:
    from reranker_ft.benchmark import NoSuchBenchmarkError, benchmark_examples  # noqa: PLC0415

    try:
        found = benchmark_examples(
            name, max_queries=MOST_HELD_OUT, negatives=MOST_NEGATIVES, seed=seed
        )
    except NoSuchBenchmarkError as error:
        raise ArgumentError(f"keep {name} is no file, and {error}") from None
    except ModuleNotFoundError as error:
        raise ArgumentError(
            f"keep {name} is no file, and {error.name}, which reads tasks of mteb, is missing - "
            "keep is a file or such a task - fix the path, or pip install '.[mteb]' in a clone"
        ) from None
    return [Example(each.query, each.positives, each.negatives) for each in found]


def has_head(architectures: Sequence[str] | None) -> bool:
    """Whether a model that was loaded came with a head that scores, as its config says."""
    return any("SequenceClassification" in each for each in architectures or ())


def require_head(name: str, architectures: Sequence[str] | None) -> None:
    """Refuse a base that scores at random: there is nothing to keep.

    Raises:
        ArgumentError: The model has no head that scores.
    """
    if not has_head(architectures):
        raise ArgumentError(
            f"{name} has no reranking head and keep is given - there is nothing to keep of scores "
            "that start at random - train a reranker first, and fine-tune that with --keep"
        )


def choose_mix(
    base: str,
    output: Path,
    held_out: Sequence[Example],
    *,
    keep: Sequence[Example] | None,
    keep_text: str | None,
    instructions: Instructions,
    max_length: int,
    last_step: int,
    seed: int,
) -> None:
    """Put the chosen mix into the output folder, beside the fine-tune that is there already.

    Args:
        base: What the fine-tune started from.
        output: Holds ``fine-tuned``, and the checkpoints that the run kept.
        held_out: Of the target; none was trained on.
        last_step: The checkpoint of this step is the fine-tune itself.

    Raises:
        RerankerError: The search failed; the fine-tune stays where it is.
    """
    data = output / HELD_OUT
    _write(data, held_out, instructions)
    retained = keep_text
    if keep is not None:
        retained = str(output / KEPT)
        _write(Path(retained), keep, instructions)
    staged = output / ".chosen"
    shutil.rmtree(staged, ignore_errors=True)
    command = [
        *(sys.executable, "-m", "cocktail", "search", base, str(output / FINE_TUNED)),
        *map(str, _checkpoints(output, last_step)),
        *("--data", str(data), "--retain-text" if keep is None else "--retain", str(retained)),
        *("--max-input-length", str(max_length)),
        *("--seed", str(seed), "--report", str(output / CHOICE_REPORT), "--output", str(staged)),
    ]
    logger.info("choosing a mix of the base and the fine-tune: %s", shlex.join(command[1:]))
    environment = {
        name: value for name, value in os.environ.items() if not _OF_A_GROUP.fullmatch(name)
    }
    try:
        status = subprocess.run(command, check=False, env=environment).returncode
        if status:
            raise RerankerError(
                f"the search ended with exit code {status} (its message is above) - the fine-tune "
                f"is safe in {output / FINE_TUNED} - mend that, and run: {shlex.join(command)}"
            )
        for path in staged.iterdir():
            path.replace(output / path.name)
        logger.info(
            "%s holds the chosen model, %s the fine-tune, %s the curve.",
            *(output, output / FINE_TUNED, output / CHOICE_REPORT),
        )
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _checkpoints(output: Path, last_step: int) -> list[Path]:
    """What the run kept on its way, in order, but the one that is the fine-tune."""
    numbered = {
        int(path.name.rpartition("-")[2]): path
        for path in output.glob("checkpoint-*")
        if path.name.rpartition("-")[2].isdigit()
    }
    return [
        path for step, path in sorted(numbered.items()) if step != last_step and holds_weights(path)
    ]


def _write(path: Path, examples: Sequence[Example], instructions: Instructions) -> None:
    """Write examples as the model is given them, instructions and all."""
    with path.open("w", encoding="utf-8") as lines:
        for each in examples:
            row = {
                "query": instructions.of_query(each.query, each.prompt),
                "pos": [instructions.of_passage(text, each.passage_prompt) for text in each.pos],
                "neg": [
                    instructions.of_passage(text, each.passage_prompt)
                    for text in list(filter(str.strip, each.neg))[:MOST_NEGATIVES]
                ],
            }
            lines.write(json.dumps(row, ensure_ascii=False) + "\n")
