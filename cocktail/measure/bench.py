"""From references and examples to one model in memory and tokenised tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

from cocktail.checkpoint.kinds import STACK_RERANKER, Kind
from cocktail.checkpoint.model import MAIN
from cocktail.errors import CheckpointError, PlanError, RecipeError
from cocktail.measure.mixture import Mixture
from cocktail.measure.options import MeasureOptions
from cocktail.measure.processes import Processes
from cocktail.measure.tasks.decoder import DecoderTask
from cocktail.measure.tasks.encoder import EncoderTask, choose_pooling
from cocktail.measure.tasks.examples import (
    Example,
    ExampleData,
    ExampleError,
    RankedExample,
    RetainedData,
    WrittenExample,
    benchmark_name,
    content_order,
    is_benchmark,
    read_ranked,
    read_written,
)
from cocktail.measure.tasks.reranker import (
    RerankerTask,
    examples_of_benchmark,
    position_limit,
)
from cocktail.measure.tasks.seq2seq import EncoderDecoderTask
from cocktail.measure.tasks.task import Task
from cocktail.measure.trimmed_vocabulary import trim_vocabulary
from cocktail.measure.unlabelled import TextData, ranked_from, read_general, written_from
from cocktail.plan.plan import Plan
from cocktail.system.threads import default_threads


@dataclass(frozen=True)
class Bench:
    """Everything that a search measures with.

    Attributes:
        task: the target's examples, in an order that depends on their content alone.
        order: their positions in the data: example ``order[i]`` of the data is the task's example
            ``i``.
        examples: the task's examples, in its order.
        retain: the task of what must not be lost, with or without labels.
        retain_examples: its examples, in its order.
        labelled: whether these have labels; otherwise the base is the teacher.
    """

    mixture: Mixture
    task: Task
    order: Sequence[int]
    examples: Sequence[Example]
    retain: Task | None
    retain_examples: Sequence[Example] = ()
    labelled: bool = True

    @property
    def given_order(self) -> list[int]:
        """The task's examples in the order of the data."""
        return sorted(range(len(self.order)), key=self.order.__getitem__)


def prepare(
    plan: Plan,
    target: ExampleData,
    retain: RetainedData | None,
    options: MeasureOptions,
    *,
    retain_text: TextData | None = None,
    trust_remote_code: bool = False,
    device: str | None = None,
    threads: int | None = None,
    processes: Processes | None = None,
    for_search: bool = True,
    progress: bool = False,
) -> Bench:
    """Read and tokenise the examples, and build the model that all mixes are measured in.

    Args:
        retain: examples of what must not be lost, or a task of mteb.
        retain_text: unlabelled text in place of ``retain``.
        for_search: for a search, which compares losses and needs only the words of the examples;
            otherwise the vocabulary stays whole, and the caller checks the examples.
        progress: show how far the reading of a task of mteb is.

    Raises:
        RecipeError: an option has no meaning for this kind of model.
        ExampleError: the examples cannot be used; raised before the model is built.
        CheckpointError: the tokenizer does not load, or the device cannot be used.
        PlanError: the model cannot be built.
    """
    _check_options(plan.kind, options)
    if plan.kind is STACK_RERANKER:
        raise PlanError(
            [
                f"{plan.donor.reference} is a reranker of a transformer, Pooling and Dense - a "
                "search can measure only one model without further modules - mix with fixed "
                "weights, or store it with a head of its class"
            ]
        )
    target_examples = read_examples(plan, target, options)
    retain_examples = _retained(plan, retain, retain_text, options, progress)
    if for_search:
        _check_rivals(plan.kind, target_examples, target)
        if retain is not None:
            _check_rivals(plan.kind, retain_examples, retain)
    pooling = None
    if plan.kind.name == "encoder":
        parts = {tensor.part: None for tensor in plan.tensors} | {MAIN: None}
        pooling = choose_pooling(options.pooling, plan.donor, parts)
    processes = processes or Processes()
    place = _device(device, processes)
    mixture = Mixture(plan, place, trust_remote_code, threads or default_threads(), processes)
    make_task = partial(_task, mixture, _tokenizer(mixture), options, pooling)
    order = content_order(target_examples, options.seed)
    ordered = [target_examples[i] for i in order]
    task = make_task(ordered)
    mixture.unit_tokens = sum(b.tokens for b in task.batches(mixture.forward_tokens))
    kept = [retain_examples[i] for i in content_order(retain_examples, options.seed)]
    retain_task = make_task(kept) if kept else None
    if plan.kind.ranks and for_search:
        trim_vocabulary(mixture, [task] if retain_task is None else [task, retain_task])
    return Bench(mixture, task, order, ordered, retain_task, kept, retain is not None)


def _retained(
    plan: Plan,
    labelled: RetainedData | None,
    text: TextData | None,
    options: MeasureOptions,
    progress: bool,
) -> Sequence[Example]:
    """The examples of what must not be lost, in the order given; empty if there are none."""
    if labelled is not None and text is not None:
        raise RecipeError(
            "both labelled and unlabelled retain examples are given - only one of them can bound "
            "the drop - give one (--retain or --retain-text)"
        )
    if labelled is not None:
        if not is_benchmark(labelled):
            return read_examples(plan, cast(ExampleData, labelled), options)
        if not plan.kind.ranks:
            raise RecipeError(
                f"{benchmark_name(labelled)}: there is no such file, and tasks of mteb rank "
                f"passages, while a {plan.kind.name} is measured on inputs with outputs - give a "
                "JSONL file (--retain), or text without labels (--retain-text)"
            )
        return examples_of_benchmark(
            labelled, negatives=options.neg_number, seed=options.seed, progress=progress
        )
    if text is None:
        return []
    read = read_general(text)
    if plan.kind.ranks:
        return ranked_from(read, options.seed)
    return written_from(read, options.seed, reads=plan.kind.name == "encoder-decoder")


def read_examples(
    plan: Plan, data: ExampleData, options: MeasureOptions
) -> list[RankedExample] | list[WrittenExample]:
    """The examples of the plan's kind, in the order given.

    Raises:
        ExampleError: they cannot be used.
    """
    if not plan.kind.is_searched:
        raise ExampleError(
            f"{plan.donor.reference} is of the kind {plan.kind.name} - examples can measure only "
            "rerankers, encoders, decoders and encoder-decoders - give the weights yourself, to "
            "`cocktail mix`"
        )
    if plan.kind.ranks:
        return read_ranked(data, negatives=options.neg_number, seed=options.seed)
    return read_written(data)


def _check_options(kind: Kind, options: MeasureOptions) -> None:
    """Refuse options of other kinds of model."""
    if kind.name != "encoder" and options.pooling is not None:
        raise RecipeError(
            f"pooling is {options.pooling!r} for a {kind.name} - only an encoder pools - "
            "leave it out"
        )
    if not kind.ranks and options.neg_number is not None:
        raise RecipeError(
            f"neg_number is {options.neg_number} for a {kind.name} - its examples, inputs with "
            "outputs, have no negatives - leave it out"
        )


def _check_rivals(
    kind: Kind, examples: Sequence[RankedExample | WrittenExample], data: RetainedData | None
) -> None:
    """Refuse examples in which no passage has a rival; an encoder's rivals include the passages of
    other examples."""
    ranked = [example for example in examples if isinstance(example, RankedExample)]
    by_themselves = kind.name == "reranker" or len(ranked) == 1
    if ranked and by_themselves and not any(example.negatives for example in ranked):
        where = data if isinstance(data, str | Path) else "the examples"
        raise ExampleError(
            f"{where}: no example has a negative - the loss on a single passage is 0 for any "
            "model - add passages that do not answer the query ('neg'), and use 1 or more of them "
            "(--neg-number, neg_number=)"
        )


def _tokenizer(mixture: Mixture) -> Any:
    """The tokenizer that the first ingredient was saved with.

    Raises:
        CheckpointError: it does not load, or there is no vocabulary, so that transformers makes one
            up from a few special tokens.
    """
    tokenizer = mixture.tokenizer()
    folder = mixture.plan.donor.main_folder
    # Byte and character tokenizers, and some in custom code, name no vocabulary.
    wanted = set(tokenizer.vocab_files_names.values())
    others = ("tokenizer.", "tekken")  # versions, and files converted on loading
    if wanted and not any(
        path.name in wanted or path.name.startswith(others) for path in folder.iterdir()
    ):
        raise CheckpointError(
            f"{folder}: its tokenizer does not load (it has none of {', '.join(sorted(wanted))}) - "
            "examples are tokenised with the first ingredient's tokenizer - save it there"
        )
    return tokenizer


def _task(
    mixture: Mixture,
    tokenizer: Any,
    options: MeasureOptions,
    pooling: str | None,
    examples: Sequence[RankedExample | WrittenExample],
) -> Task:
    model = mixture.model
    asked = options.max_input_length
    max_length = min(asked, position_limit(model) or asked)
    ranked = [example for example in examples if isinstance(example, RankedExample)]
    written = [example for example in examples if isinstance(example, WrittenExample)]
    kind = mixture.plan.kind.name
    if kind == "reranker":
        return RerankerTask(
            ranked, tokenizer, model, max_length=max_length, folder=mixture.plan.donor.folder
        )
    if kind == "encoder":
        return EncoderTask(
            ranked, tokenizer, model, pooling=pooling or "cls", max_length=max_length
        )
    if kind == "decoder":
        return DecoderTask(written, tokenizer, model, max_length=max_length)
    if kind == "encoder-decoder":
        return EncoderDecoderTask(written, tokenizer, model, max_length=max_length)
    raise PlanError([f"a search cannot measure models of the kind {kind}"])


def _device(name: str | None, processes: Processes) -> torch.device:
    """The device of that name, by default the accelerator; each process has its own GPU."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        if device == torch.device("cuda") and processes.count > 1:
            device = torch.device("cuda", processes.local_rank % torch.cuda.device_count())
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError, TypeError, ZeroDivisionError) as error:
        reason = str(error).strip().split("\n")[0]
        raise CheckpointError(
            f"device {name!r} cannot be used ({reason}) - use cpu or cuda"
        ) from None
    return device
