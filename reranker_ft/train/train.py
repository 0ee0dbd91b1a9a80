"""One training run, from arguments to an output folder that every tool loads."""

from __future__ import annotations

import logging
import os
import textwrap
from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn
from transformers import (
    EarlyStoppingCallback,
    TrainerCallback,
    set_seed,
)

from reranker_ft.data.examples import Example, ExampleFiles, data_files
from reranker_ft.errors import ArgumentError, RerankerError, one_line
from reranker_ft.evaluate.ranking import RankingSet
from reranker_ft.model.forward import computes_beginnings_once, keep_freed_memory
from reranker_ft.model.modules import ModuleStack
from reranker_ft.model.pairs import PairEncoder
from reranker_ft.model.quiet_bars import bars_on_terminals_only
from reranker_ft.model.readout import pair_encoder, readout_of, settle_instructions
from reranker_ft.model.scoring import default_micro_batch_tokens, needs_mask, position_limit
from reranker_ft.model.stack import write_stack
from reranker_ft.progress import on_terminal
from reranker_ft.train.card import write_card
from reranker_ft.train.collate import GroupCollator
from reranker_ft.train.config import DataArguments, ModelArguments, RerankerTrainingArguments
from reranker_ft.train.decoder import is_language_reranker
from reranker_ft.train.groups import GroupDataset, KnownPositives
from reranker_ft.train.history import PICTURE_FILE, HistoryCallback, draw_history
from reranker_ft.train.keep import choose_mix, has_head, hold_out, read_kept, require_head
from reranker_ft.train.output_folder import (
    FINE_TUNED,
    OutputCallback,
    check_output,
    keep_one_model,
)
from reranker_ft.train.push import push
from reranker_ft.train.result import TrainingResult
from reranker_ft.train.resume import checkpoint_to_resume, require_fit
from reranker_ft.train.start import load_for_training
from reranker_ft.train.telling import next_command, tell
from reranker_ft.train.trainer import BestCheckpointCallback, CollapseCallback, RerankerTrainer

logger = logging.getLogger(__name__)


def run(
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: RerankerTrainingArguments,
) -> RerankerTrainer:
    """Train, evaluate and save; return the trainer, with the trained model in it.

    Raises:
        ArgumentError: Arguments that make no sense, or an output folder that would be lost.
        DataError: Lines of the data break the format.
        ModelError: The model does not load, or cannot be a reranker.
    """
    output = Path(training_args.output_dir)
    checkpoint = checkpoint_to_resume(
        training_args.resume_from_checkpoint, output, sharded=training_args.is_sharded
    )
    check_output(
        output,
        model_args.model_name_or_path,
        _inputs(model_args, data_args, training_args),
        overwrite=training_args.overwrite_output_dir,
        resuming=checkpoint is not None,
    )
    for note in training_args.notes:
        logger.warning(note)
    set_seed(training_args.seed)
    kept = read_kept(data_args.keep, data_args.keep_text, training_args.drawing_seed)
    examples, held_out = _split(_read(data_args, training_args), data_args, training_args)
    model, tokenizer = load_for_training(model_args, data_args.sep_token)
    is_language = is_language_reranker(model_args)
    mixable = is_language or has_head(model.config.architectures)
    if held_out is not None and not is_language:
        require_head(model_args.model_name_or_path, model.config.architectures)
    given = data_args.instructions
    query, passage = settle_instructions(
        model, (given.query, given.query_format), (given.passage, given.passage_format)
    )
    data_args = replace(
        data_args, query_instruction_for_rerank=query, passage_instruction_for_rerank=passage
    )
    if checkpoint and not training_args.is_sharded:
        require_fit(checkpoint, model, adapters=bool(model_args.use_lora))
    trainer = _make_trainer(model, tokenizer, examples, model_args, data_args, training_args)
    trainer.next_command = next_command(model_args, data_args, training_args, mixable=mixable)
    trainer.get_train_dataloader()  # refuses what it cannot make before anything is removed
    if training_args.device.type == "cpu":
        keep_freed_memory()
    with bars_on_terminals_only():
        _train(trainer, checkpoint)
        if trainer.ranking_sets and _is_unmeasured(trainer):
            trainer.evaluate()
        if trainer.is_world_process_zero():
            draw_history(output / PICTURE_FILE, trainer.state.log_history)
        fine_tuned = output if held_out is None else output / FINE_TUNED
        _save(trainer, model_args, fine_tuned)
        if trainer.is_world_process_zero():
            write_card(
                fine_tuned, model_args.model_name_or_path,
                train_data=data_files(data_args.train_data),
                eval_data={
                    "eval": data_files(training_args.eval_data or ()),
                    "eval_retain": data_files(training_args.retain_data or ()),
                },
                history=trainer.state.log_history,
                adapters=model_args.saves_adapters,
            )  # fmt: skip
    if held_out is not None and trainer.is_world_process_zero():
        choose_mix(
            model_args.model_name_or_path, output, held_out, keep=kept,
            keep_text=data_args.keep_text, instructions=data_args.instructions,
            max_length=trainer.data_collator.encoder.max_length,
            last_step=trainer.state.global_step, seed=training_args.seed,
        )  # fmt: skip
    elif trainer.is_world_process_zero():
        logger.info("saved: %s", output)
    if trainer.is_world_process_zero():
        if training_args.push_to_hub:
            push(trainer, output)
        logger.info("next: %s", trainer.next_command)
    return trainer


def training_result(trainer: RerankerTrainer) -> TrainingResult:
    """Return what a run did that has ended with this trainer."""
    history = tuple(trainer.state.log_history)
    return TrainingResult(
        output=trainer.args.output_dir,
        steps=trainer.state.global_step,
        seconds=next((entry["train_runtime"] for entry in history if "train_runtime" in entry), 0),
        evaluations=tuple(
            entry for entry in history if any(name.startswith("eval_") for name in entry)
        ),
        history=history,
        next_command=trainer.next_command,
    )


def _split(
    examples: ExampleFiles, data_args: DataArguments, training_args: RerankerTrainingArguments
) -> tuple[Sequence[Example], Sequence[Example] | None]:
    """What is trained on, and what a mix is chosen by; ``None`` where none is to be chosen."""
    if not (data_args.keep or data_args.keep_text):
        return examples, None
    if training_args.eval_data:
        held_out = ExampleFiles(training_args.eval_data, negatives_required=True)
        return examples, held_out[: training_args.max_eval_queries]
    return hold_out(examples, training_args.drawing_seed)


def _inputs(
    model_args: ModelArguments, data_args: DataArguments, training_args: RerankerTrainingArguments
) -> list[str | Path]:
    """Return what the run reads, beside the model it starts from."""
    data = (data_args.train_data, training_args.eval_data, training_args.retain_data)
    others = (
        *(model_args.tokenizer_name, model_args.config_name),
        *(data_args.keep, data_args.keep_text),
    )
    return [*(path for paths in data for path in data_files(paths or ())), *filter(None, others)]


def _train(trainer: RerankerTrainer, checkpoint: Path | None) -> None:
    """Train; what is refused before the first step is one line."""
    start = OutputCallback(overwrite=trainer.args.overwrite_output_dir and checkpoint is None)
    trainer.add_callback(start)
    try:
        trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    except (RerankerError, OSError):
        raise
    # Each optimizer, schedule and compiler has its own types for what it does not take.
    except Exception as error:
        if start.began:
            raise
        reason = textwrap.shorten(str(error) or type(error).__name__, 300, placeholder=" ...")
        if checkpoint:
            raise ArgumentError(
                f"cannot go on from {checkpoint} ({reason}) - a resumed run needs the flags that "
                "it began with - use those, another checkpoint, or start anew"
            ) from error
        raise ArgumentError(
            f"training cannot begin ({reason}) - flags name what is installed and have values that "
            "it takes - change or drop the flag"
        ) from error


def _save(trainer: RerankerTrainer, args: ModelArguments, output: Path) -> None:
    """Write the trained model, which is then the only one in the folder."""
    if args.use_lora and not args.saves_adapters:
        trainer.model = trainer.accelerator.unwrap_model(trainer.model).merge_and_unload()
    trainer.save_model(str(output), _internal_call=True)  # pushed when all is there
    if not trainer.is_world_process_zero():
        return
    if args.use_lora:
        # Beside the adapters too, so that whoever adds them to the base knows the head.
        config = copy(trainer.accelerator.unwrap_model(trainer.model).config)
        vars(config).pop("quantization_config", None)  # they fit the base in full precision
        config.save_pretrained(output)
    trained = trainer.accelerator.unwrap_model(trainer.model)
    if isinstance(trained, ModuleStack):
        trained.save_pretrained(output)  # the trainer wrote its parameters, without their layout
    keep_one_model(output, adapters=args.saves_adapters)
    readout = readout_of(trainer.model)
    if readout is not None and readout.yes is not None:
        with trainer.data_collator.encoder.tokenizer_as_it_came():
            write_stack(output, readout, trainer.data_collator.encoder.tokenizer)


def _read(data_args: DataArguments, training_args: RerankerTrainingArguments) -> ExampleFiles:
    return ExampleFiles(
        data_args.train_data,
        max_per_file=data_args.max_example_num_per_dataset,
        seed=training_args.drawing_seed,
        scores_required=data_args.knowledge_distillation,
        negatives_required=data_args.train_group_size > 1,
        progress=training_args.process_index == 0
        and not (training_args.disable_tqdm and on_terminal()),
    )


def _make_trainer(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: RerankerTrainingArguments,
) -> RerankerTrainer:
    encoder = make_encoder(model, tokenizer, data_args)
    collator = GroupCollator(
        encoder,
        micro_batch_tokens=data_args.micro_batch_tokens
        or default_micro_batch_tokens(training_args.device, training=True),
        in_batch_negatives=data_args.in_batch_negatives,
        always_mask=needs_mask(model),
        shared=training_args.device.type == "cpu"
        and not training_args.gradient_checkpointing
        and model_args.start_layer is None
        and computes_beginnings_once(model),
    )
    dataset = GroupDataset(
        examples,
        group_size=data_args.train_group_size,
        instructions=data_args.instructions,
        seed=training_args.drawing_seed,
        shuffle_ratio=data_args.shuffle_ratio,
        known_positives=KnownPositives(examples) if data_args.in_batch_negatives else None,
    )
    queries = training_args.train_batch_size * training_args.world_size
    if data_args.in_batch_negatives and queries < 2:
        raise ArgumentError(
            "in_batch_negatives is set and a batch holds 1 query - the negatives come from other "
            "queries - use --per_device_train_batch_size 2 or more"
        )
    if training_args.dataloader_num_workers:
        # The tokenizer's own threads and forked workers do not go together.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    ranking_sets = _ranking_sets(encoder, data_args, training_args)
    try:
        trainer = RerankerTrainer(
            model,
            training_args,
            train_dataset=dataset,
            data_collator=collator,
            ranking_sets=ranking_sets,
            distil=data_args.knowledge_distillation,
            processing_class=tokenizer,
            callbacks=_callbacks(data_args, training_args),
        )
        tell(trainer)
        return trainer
    except (ValueError, ImportError, RuntimeError) as error:
        # The Trainer checks further combinations of flags: --fsdp with one process, --report_to.
        raise ArgumentError(one_line(error)) from error
    except Exception as error:
        if not training_args.push_to_hub:
            raise
        # The repository is made now; its client raises what its HTTP library does.
        raise ArgumentError(
            f"push_to_hub cannot make its repository ({one_line(error)}) - it needs the Hub and a "
            "token that may write - log in, or leave the flag out"
        ) from error


def _callbacks(
    data_args: DataArguments, training_args: RerankerTrainingArguments
) -> list[TrainerCallback]:
    columns = data_args.train_group_size + data_args.in_batch_negatives
    callbacks = [HistoryCallback(), BestCheckpointCallback(), CollapseCallback(columns)]
    patience = training_args.early_stopping_patience
    if patience is not None:
        threshold = training_args.early_stopping_threshold
        callbacks.append(EarlyStoppingCallback(patience, threshold))
    return callbacks


def make_encoder(model: nn.Module, tokenizer: Any, args: DataArguments) -> PairEncoder:
    """Return the encoder of the run's pairs; warn if the model has too few positions."""
    max_length, limit = args.pair_length, position_limit(model)
    if limit is not None and max_length > limit:
        if args.max_length is not None or max_length != limit:
            logger.warning(
                "Pairs of %d tokens were asked for and the model has %d positions: cut at %d.",
                max_length,
                limit,
                limit,
            )
        max_length = limit
    multiple = args.pad_to_multiple_of or 1
    if limit is not None and -(-max_length // multiple) * multiple > limit:
        max_length = limit // multiple * multiple
        if not max_length:
            raise ArgumentError(
                f"pad_to_multiple_of is {multiple} and the model has {limit} positions - each "
                "token has one, padding too - use a smaller number"
            )
        logger.warning(
            "Pairs are padded to multiples of %d tokens and the model has %d positions: cut at %d.",
            multiple,
            limit,
            max_length,
        )
    return pair_encoder(
        model,
        tokenizer,
        max_length=max_length,
        query_max_length=args.query_max_length,
        passage_max_length=args.passage_max_length,
        pad_to_multiple_of=args.pad_to_multiple_of,
    )


def _ranking_sets(
    encoder: PairEncoder, data_args: DataArguments, training_args: RerankerTrainingArguments
) -> dict[str, RankingSet]:
    # Processes that hold a model together make its forwards together, on the same queries.
    together = training_args.is_sharded
    sets: dict[str, RankingSet] = {}
    for name, paths in (
        ("eval", training_args.eval_data),
        ("eval_retain", training_args.retain_data),
    ):
        if paths:
            examples = ExampleFiles(paths, negatives_required=True)
            sets[name] = RankingSet(
                examples[: training_args.max_eval_queries],
                encoder,
                data_args.instructions,
                process=0 if together else training_args.process_index,
                processes=1 if together else training_args.world_size,
            )
    return sets


def _is_unmeasured(trainer: RerankerTrainer) -> bool:
    """Whether the model as it is now has no evaluation yet: a late step, or the best one loaded."""
    measured = [
        entry["step"]
        for entry in trainer.state.log_history
        if any(key.startswith("eval_") for key in entry)
    ]
    loaded_best = trainer.args.load_best_model_at_end and trainer.state.best_model_checkpoint
    return bool(loaded_best) or trainer.state.global_step not in measured
