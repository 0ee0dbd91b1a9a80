"""Rerankers: group cross-entropy of a query's passages, computed as in training.

``reranker_ft`` encodes the pairs and computes the loss, so the search minimises what fine-tuning
minimised.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cocktail.errors import CocktailError
from cocktail.measure.tasks.examples import BenchmarkTask, RankedExample, benchmark_name
from cocktail.measure.tasks.task import Batch, softmax_slopes
from reranker_ft.errors import RerankerError
from reranker_ft.model.described import is_language_model
from reranker_ft.model.forward import (
    computes_beginnings_once,
    drop_bf16_layers,
    forward_logits,
    keep_bf16_layers,
)
from reranker_ft.model.loss import softmax_cross_entropy
from reranker_ft.model.precision import cpu_computes_in_bf16
from reranker_ft.model.readout import Readout, pair_encoder, readout_of
from reranker_ft.model.rerankers import (
    attach_recorded,
    find_readout,
    load_reranker,
    prepare_language_model,
)
from reranker_ft.model.scoring import micro_batches, needs_mask, score_encodings, to_device
from reranker_ft.model.scoring import position_limit as position_limit
from reranker_ft.model.stack import write_stack
from reranker_ft.model.tokenizer import fit_tokenizer

BENCHMARK_QUERIES = 100
BENCHMARK_NEGATIVES = 7
_LONGEST = 512
"""Tokens of a pair whose scores are compared."""


class RerankerTask:
    """Q queries with their passages; a row is the score of one pair.

    Args:
        model: says how many positions there are, and whether it needs a mask.
        max_length: the most tokens of a pair.
        folder: the model's folder, which says how a language model scores; a head needs none.

    Raises:
        CocktailError: the tokenizer cannot make pairs, or the length leaves no room for them.
    """

    entangled = False
    scale_free = True
    metric = "ndcg@10"

    def __init__(
        self,
        examples: Sequence[RankedExample],
        tokenizer: Any,
        model: Any,
        *,
        max_length: int,
        folder: Path | None = None,
    ) -> None:
        self.places = [example.place for example in examples]
        with _as_cocktail_errors():
            if folder is not None:
                _attach_readout(model, tokenizer, folder)
            fit_tokenizer(model.config.name_or_path or "the model", model, tokenizer)
            encoder = pair_encoder(model, tokenizer, max_length=max_length)
            self._encodings = encoder(
                [(example.query, text) for example in examples for text in example.passages]
            )
        counts = [len(example.passages) for example in examples]
        self.rows = sum(counts)
        self._starts = np.cumsum([0, *counts])
        width = max(counts)
        columns = torch.arange(width)
        self._present = columns < torch.tensor(counts)[:, None]  # (Q, G)
        # Empty places point at row 0; `present` keeps them out of every result.
        self._places_of_rows = torch.where(
            self._present, columns + torch.from_numpy(self._starts[:-1])[:, None], 0
        )
        self._always_mask = needs_mask(model)
        self._shared = computes_beginnings_once(model)

    def batches(self, max_tokens: int, examples: Sequence[int] | None = None) -> list[Batch]:
        chosen = range(len(self.places)) if examples is None else examples
        rows = np.concatenate([np.arange(*self._starts[i : i + 2]) for i in chosen])
        made = []
        encodings = self._encodings.take(rows.tolist())
        for batch in micro_batches(encodings, max_tokens, shared=self._shared):
            picked = rows[batch]
            with _as_cocktail_errors():
                inputs = self._encodings.pad(picked.tolist(), always_mask=self._always_mask)
            owners = np.searchsorted(self._starts, picked, side="right") - 1
            made.append(Batch(inputs, torch.from_numpy(picked), frozenset(owners.tolist())))
        return made

    def forward(self, model: Any, batch: Batch) -> Tensor:
        """(B,) scores."""
        with _as_cocktail_errors():
            scores: Tensor = forward_logits(model, to_device(batch.inputs, model.device))
        return scores

    keep = forward

    def prepare_bf16(self, model: Any) -> bool:
        """Let forwards without gradients compute in bf16, with the weights of this moment.

        Returns:
            Whether they do: the model is of a class that can, and the processor is faster for it.
        """
        return cpu_computes_in_bf16() and keep_bf16_layers(model)

    def drop_bf16(self, model: Any) -> None:
        """Let forwards compute in the model's dtype again."""
        drop_bf16_layers(model)

    def scores(
        self, rows: Tensor, examples: Sequence[int], among: Sequence[int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """(Q, G) scores, and whether there is a passage at each place."""
        chosen = torch.as_tensor(list(examples))
        return rows.double()[self._places_of_rows[chosen]], self._present[chosen]

    def losses(self, scores: tuple[Tensor, Tensor], scale: Tensor) -> Tensor:
        values, present = scores
        losses: Tensor = softmax_cross_entropy(values * scale, present)
        return losses

    def scale_slopes(self, scores: tuple[Tensor, Tensor], scale: float) -> tuple[float, float]:
        values, present = scores
        first = torch.zeros(len(values), dtype=torch.long)
        return softmax_slopes(values, ~present, first, scale)

    def groups(self, rows: Tensor, examples: Sequence[int]) -> Tensor:
        scores, present = self.scores(rows, examples)
        return scores.masked_fill(~present, float("-inf"))

    def batch_mean_loss(self, rows: Tensor, batch_size: int, order: Sequence[int]) -> float:
        """LM_Cocktail has no rule for rerankers: the mean over the examples."""
        return self.losses(self.scores(rows, order), torch.ones(())).mean().item()


def _attach_readout(model: Any, tokenizer: Any, folder: Path) -> None:
    """Set how a language model scores, from its folder, as ``reranker_ft`` does."""
    if readout_of(model) is not None:
        return
    if not is_language_model(model.config):
        attach_recorded(model)
        return
    readout = find_readout(str(folder), model.config, tokenizer)
    prepare_language_model(str(folder), model, tokenizer, readout)


def scoring_record(folder: Path) -> dict[str, Any]:
    """How the language model in a folder scores: the answers' token ids and the prompt.

    Raises:
        CocktailError: nothing there says how, or the file that does is damaged.
    """
    from transformers import AutoConfig, AutoTokenizer  # noqa: PLC0415 - seconds to import

    with _as_cocktail_errors():
        config = AutoConfig.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        return find_readout(str(folder), config, tokenizer).to_dict()


def add_logit_score(folder: Path, record: Mapping[str, Any]) -> None:
    """Make a stack of modules of the language model in a folder: LogitScore and a chat template.

    Args:
        record: see ``scoring_record``.

    Raises:
        CocktailError: its tokenizer does not load, or the record is damaged.
    """
    from transformers import AutoTokenizer  # noqa: PLC0415 - seconds to import

    with _as_cocktail_errors():
        write_stack(folder, Readout.from_dict(record), AutoTokenizer.from_pretrained(folder))


def pair_scores(folder: Path, pairs: Sequence[tuple[str, str]]) -> list[float]:
    """Raw scores of pairs by the reranker in a folder, in fp32 on the CPU.

    Raises:
        CocktailError: it does not load as a reranker.
    """
    with _as_cocktail_errors():
        model, tokenizer = load_reranker(folder)
        length = min(_LONGEST, position_limit(model) or _LONGEST)
        encoder = pair_encoder(model, tokenizer, max_length=length)
        scores = score_encodings(model.float(), encoder(pairs))
    found: list[float] = scores.tolist()
    return found


def calibrate_folder(folder: Path, data: str | Path, **options: Any) -> dict[str, Any]:
    """Fit a scale and an offset to labelled pairs, and fold them into the head of the model.

    Args:
        folder: of a reranker; its head changes in place.
        data: a JSONL file of ``{"query", "pos", "neg"}``.
        options: of ``reranker_ft.Reranker``.

    Returns:
        What ``reranker_ft.evaluate.calibrate.Calibration`` says of it.

    Raises:
        CocktailError: the data cannot be fitted, or the head takes no offset.
    """
    # Of the ``train`` extra, which mixing and searching do without.
    from reranker_ft.evaluate.calibrate import calibrate_reranker, fold_into  # noqa: PLC0415

    with _as_cocktail_errors():
        found = calibrate_reranker(folder, data, reranker_options=options)
        fold_into(folder, found)
    return found.to_dict()


def examples_of_benchmark(
    benchmark: str | BenchmarkTask, *, negatives: int | None, seed: int, progress: bool = False
) -> list[RankedExample]:
    """Draw examples from a reranking or retrieval task of mteb.

    Args:
        benchmark: name of a task or of a benchmark, or a task of mteb's classes.
        negatives: at most so many of each query; ``None`` takes ``BENCHMARK_NEGATIVES``.
        seed: for the draw of ``BENCHMARK_QUERIES``, and of candidates that have no order.
        progress: show how far the first stage is.

    Raises:
        CocktailError: mteb is not installed, does not know or cannot load the task, or the task
            ranks no texts.
    """
    name = benchmark_name(benchmark)
    try:
        # Of the extras ``train`` and ``mteb``, which mixing and searching do without.
        from reranker_ft.benchmark import NoSuchBenchmarkError, benchmark_examples  # noqa: PLC0415

        with _as_cocktail_errors():
            try:
                found = benchmark_examples(
                    benchmark,
                    max_queries=BENCHMARK_QUERIES,
                    negatives=BENCHMARK_NEGATIVES if negatives is None else negatives,
                    seed=seed,
                    progress=progress,
                )
            except NoSuchBenchmarkError as error:
                raise CocktailError(f"{name}: there is no such file, and {error}") from None
    except ModuleNotFoundError as error:
        raise CocktailError(
            f"{name}: there is no such file, and {error.name}, which reads tasks of mteb, is not "
            "installed - retain examples are a file or such a task - correct the path, or pip "
            "install '.[mteb]' in a clone of this repository"
        ) from None
    return [RankedExample(each.query, each.positives, each.negatives, each.place) for each in found]


@contextmanager
def _as_cocktail_errors() -> Iterator[None]:
    try:
        yield
    except RerankerError as error:
        raise CocktailError(str(error)) from None
