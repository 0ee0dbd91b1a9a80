"""The public calls: what each command does, with its options as arguments."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from reranker_ft.data.files import refuse_existing
from reranker_ft.data.instructions import Instructions
from reranker_ft.errors import ArgumentError
from reranker_ft.notebook import html_table

if TYPE_CHECKING:
    from reranker_ft.evaluate.compare import Comparison
    from reranker_ft.mine.mine import MiningReport
    from reranker_ft.mine.retrieve import RetrieverFactory
    from reranker_ft.train.result import TrainingResult

Paths = str | Path | Sequence[str | Path]


def train_reranker(
    model_name_or_path: str | Path,
    train_data: Paths,
    output_dir: str | Path,
    **flags: Any,
) -> TrainingResult:
    """Fine-tune a reranker on queries with positives and negatives.

    What ``reranker-ft train`` does, in this process. For several processes use
    ``torchrun -m reranker_ft.run``.

    >>> done = train_reranker("BAAI/bge-reranker-base", "train.jsonl", "out",
    ...                       eval_data="dev.jsonl", num_train_epochs=1)  # doctest: +SKIP
    >>> done.evaluations[-1]["eval_ndcg@10"]  # doctest: +SKIP

    Args:
        model_name_or_path: A reranker to train further, or an encoder that gets a fresh head.
        train_data: JSONL files, or folders of them, of {"query", "pos", "neg"}.
        output_dir: A new folder.
        flags: Those that ``reranker-ft train --help`` lists, without the dashes:
            ``eval_data="dev.jsonl"``, ``learning_rate=6e-5``, ``keep="general.jsonl"``.

    Raises:
        ArgumentError: A flag does not exist or makes no sense, or the output would be lost.
        DataError: Lines of the data break the format.
        ModelError: The model does not load, or training diverged.
    """
    # transformers' Trainer takes seconds to import, which no other call needs.
    from reranker_ft.train.config import (  # noqa: PLC0415
        DataArguments,
        ModelArguments,
        RerankerTrainingArguments,
    )
    from reranker_ft.train.train import run, training_result  # noqa: PLC0415

    given = {
        **flags,
        "model_name_or_path": str(model_name_or_path),
        "train_data": train_data,
        "output_dir": str(output_dir),
    }
    for name in ("train_data", "eval_data", "retain_data"):
        if given.get(name) is not None:
            given[name] = list(map(str, _listed(given[name])))
    kinds: tuple[Any, ...] = (ModelArguments, DataArguments, RerankerTrainingArguments)
    for name in given:
        known = set().union(*map(_names, kinds))
        if name not in known:
            close = difflib.get_close_matches(name, known, n=2)
            meant = f"did you mean {' or '.join(close)}?" if close else "see its help"
            raise ArgumentError(
                f"no such flag: {name} - reranker-ft train --help lists all flags - {meant}"
            )
    arguments = [
        kind(**{name: given[name] for name in _names(kind) & set(given)}) for kind in kinds
    ]
    return training_result(run(*arguments))


def evaluate_rerankers(
    models: Paths,
    data: Paths = (),
    *,
    benchmark: Any = None,
    max_queries: int | None = None,
    card: bool = False,
    reranker_options: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Comparison:
    """Compare rerankers on held-out queries: MRR@10, NDCG@10, MAP and Recall@k with intervals.

    What ``reranker-ft evaluate`` does. In a notebook the result shows itself as a table.

    >>> found = evaluate_rerankers(["base", "out"], "test.jsonl")  # doctest: +SKIP
    >>> found.results[1].differences["ndcg@10"].mean  # doctest: +SKIP

    Args:
        models: Folders or Hub ids; differences are to the first.
        data: Files or folders of {"query", "pos", "neg"}; each is a data set.
        benchmark: Of mteb: the name of a benchmark or of a reranking or retrieval task, a task
            object, or a list of these. Retrieval tasks are ranked after BM25, which has a row of
            its own. Of several tasks the last results are the average over them.
        max_queries: Only the first queries of each data set.
        card: Add NDCG@10 and MAP to the ``README.md`` of every model that is a folder, in the text
            and as the Hub's ``model-index``.
        reranker_options: Arguments of ``Reranker``.
        progress: Show how far it is.

    Raises:
        ArgumentError: A name comes twice, ``max_queries`` is below 1, there is nothing to
            evaluate on, or no model is a folder with a card.
        DataError, ModelError: Something does not load, or a card cannot be read.
    """
    # Import torch, which mining by BM25 alone does without.
    from reranker_ft.evaluate.card import add_to_cards, check_cards  # noqa: PLC0415
    from reranker_ft.evaluate.compare import (  # noqa: PLC0415
        Comparison,
        average_over_tasks,
        compare,
        compare_on,
    )

    names, paths = list(map(str, _listed(models))), _listed(data)
    asked = [] if benchmark is None else benchmark if isinstance(benchmark, list) else [benchmark]
    if not (paths or asked):
        raise ArgumentError(
            "neither data nor a benchmark is given - models are compared on one - add it"
        )
    if card:
        check_cards(names)
    shared: dict[str, Any] = {"reranker_options": reranker_options, "progress": progress}
    tasks = []
    if asked:
        from reranker_ft.benchmark import FIRST_STAGE, load_benchmark  # noqa: PLC0415 - optional

        tasks = [
            task
            for name in asked
            for task in load_benchmark(name, max_queries=max_queries, progress=progress)
        ]
    results = compare(names, paths, max_queries=max_queries, **shared) if paths else []
    if tasks:
        beside = {
            task.name: (FIRST_STAGE, values)
            for task in tasks
            if (values := task.measure_first_stage()) is not None
        }
        sets = {task.name: task.measure for task in tasks}
        ranked = compare_on(names, sets, beside=beside, **shared)
        results += ranked + average_over_tasks(ranked, {task.name: task.task for task in tasks})
    if card:
        add_to_cards(results)
    return Comparison(tuple(results))


def mine_negatives(
    input_file: str | Path,
    output_file: str | Path,
    *,
    candidate_pool: str | Path | None = None,
    range_for_sampling: str = "10-210",
    negative_number: int = 15,
    fill_random: bool = True,
    seed: int = 0,
    reranker: str | Path | None = None,
    margin: float | None = None,
    reranker_options: Mapping[str, Any] | None = None,
    embedder_name_or_path: str | Path | None = None,
    pooling_method: Literal["cls", "mean", "last_token"] | None = None,
    normalize_embeddings: bool = True,
    query_instruction_for_retrieval: str | None = None,
    query_instruction_format_for_retrieval: str = "{}{}",
    embedder_query_max_length: int = 512,
    embedder_passage_max_length: int = 512,
    overwrite: bool = False,
    progress: bool = True,
) -> MiningReport:
    """Find hard negatives for training data: passages that rank high and do not answer.

    What ``reranker-ft mine`` does.

    Args:
        input_file: JSONL of {"query", "pos"}.
        output_file: The same lines with mined ``neg``.
        candidate_pool: JSONL with "text", or a passage a line; ``None`` takes the input's passages.
        range_for_sampling: Ranks to draw from; 0 is the best, the end is excluded.
        negative_number: Negatives per query.
        fill_random: Add random negatives where the ranks give too few.
        seed: Of the draw.
        reranker: A cross-encoder that guards against false negatives.
        margin: How far below the query's positives a negative scores there, in logits; 0 by
            default.
        reranker_options: Arguments of ``Reranker``; the device, precision and cache are the
            encoder's as well.
        embedder_name_or_path: Rank with this encoder; ``None`` for BM25.
        pooling_method: Of the encoder: ``cls``, ``mean``, ``last_token``; as stored by default.
        normalize_embeddings: Compare the encoder's embeddings by cosine.
        query_instruction_for_retrieval, query_instruction_format_for_retrieval: The encoder's
            instruction for queries, and how the two are put together.
        embedder_query_max_length, embedder_passage_max_length: Maximum tokens for the encoder.
        overwrite: Replace an output that exists.
        progress: Show how far it is.

    Raises:
        ArgumentError: ``margin`` without ``reranker``; a file is missing; or the output exists and
            ``overwrite`` is false.
        DataError, ModelError: Something does not load.
    """
    from reranker_ft.mine.mine import MiningOptions, mine_file, parse_ranks  # noqa: PLC0415
    from reranker_ft.mine.retrieve import BM25  # noqa: PLC0415

    if margin is not None and reranker is None:
        raise ArgumentError(
            "margin is given without reranker - it compares the scores of one - add a reranker"
        )
    refuse_existing(output_file, overwrite=overwrite)
    shared = dict(reranker_options or {})
    options = MiningOptions(
        ranks=parse_ranks(range_for_sampling),
        negatives=negative_number,
        fill_random=fill_random,
        margin=margin or 0.0,
        seed=seed,
    )
    retriever: RetrieverFactory = functools.partial(BM25, progress=progress)
    if embedder_name_or_path is not None:
        from reranker_ft.mine.bi_encoder import EncoderOptions, load_encoder  # noqa: PLC0415
        from reranker_ft.mine.encoder_search import EncoderSearch  # noqa: PLC0415

        devices = shared.get("devices")
        first = devices[0] if isinstance(devices, list | tuple) else devices
        encoder = load_encoder(
            str(embedder_name_or_path),
            EncoderOptions(
                pooling=pooling_method,
                normalize=normalize_embeddings,
                instructions=Instructions(
                    query=query_instruction_for_retrieval,
                    query_format=query_instruction_format_for_retrieval,
                ),
                query_max_length=embedder_query_max_length,
                passage_max_length=embedder_passage_max_length,
                device=first,
                **{
                    name: shared[name]
                    for name in ("use_fp16", "use_bf16", "trust_remote_code", "cache_dir")
                    if name in shared
                },
            ),
        )
        retriever = functools.partial(EncoderSearch, encoder, progress=progress)
    guard = None
    if reranker is not None:
        from reranker_ft.score.reranker import Reranker  # noqa: PLC0415

        guard = Reranker(reranker, **shared)
    return mine_file(
        input_file,
        output_file,
        options,
        retriever,
        candidate_pool=candidate_pool,
        reranker=guard,
        overwrite=overwrite,
        progress=progress,
    )


@dataclass(frozen=True)
class DistilledFile:
    """Training data with a teacher's scores.

    Attributes:
        lines: Queries.
        pairs: Passages that were scored.
        output: The file that was written.
    """

    lines: int
    pairs: int
    output: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    def _repr_html_(self) -> str:
        rows = [("teacher scores", self.output), ("queries", self.lines), ("passages", self.pairs)]
        return html_table(rows)


def distil_scores(
    teacher: str | Path,
    input_file: str | Path,
    output_file: str | Path,
    *,
    overwrite: bool = False,
    reranker_options: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> DistilledFile:
    """Add a teacher's scores to training data, for ``knowledge_distillation=True``.

    What ``reranker-ft distil`` does.

    Args:
        teacher: A reranker, as a rule larger than the model to train.
        input_file: JSONL of {"query", "pos", "neg"}.
        output_file: The same lines with ``pos_scores`` and ``neg_scores``.
        overwrite: Replace an output that exists.
        reranker_options: Arguments of ``Reranker``.
        progress: Show how far it is.

    Raises:
        ArgumentError: The input is missing, or the output exists and ``overwrite`` is false.
        DataError, ModelError: Something does not load.
    """
    from reranker_ft.score.distil import add_teacher_scores  # noqa: PLC0415
    from reranker_ft.score.reranker import Reranker  # noqa: PLC0415

    refuse_existing(output_file, overwrite=overwrite)
    counted = add_teacher_scores(
        Reranker(teacher, **(reranker_options or {})),
        input_file,
        output_file,
        overwrite=overwrite,
        progress=progress,
    )
    return DistilledFile(counted["lines"], counted["pairs"], str(output_file))


def _listed(paths: Paths) -> list[str | Path]:
    return [paths] if isinstance(paths, str | Path) else list(paths)


def _names(kind: Any) -> set[str]:
    return {field.name for field in fields(kind) if field.init}
