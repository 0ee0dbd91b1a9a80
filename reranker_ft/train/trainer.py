"""Subclass transformers.Trainer for rerankers: groups in, one loss, ranking metrics out."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback

from reranker_ft.errors import ModelError
from reranker_ft.evaluate.ranking import (
    RankingSet,
    interleaved,
    ranking_loss,
    ranking_metrics,
    score_spread,
)
from reranker_ft.model.forward import attention_without_plans, forward_logits
from reranker_ft.model.loss import LOSSES, distillation, towards_last_layer
from reranker_ft.model.precision import products_in_bf16
from reranker_ft.model.scoring import score_encodings, to_device
from reranker_ft.progress import on_terminal
from reranker_ft.train.collate import GroupCollator, TrainingBatch, group_scores
from reranker_ft.train.config import RerankerTrainingArguments
from reranker_ft.train.groups import Group, GroupBatchSampler, GroupDataset

logger = logging.getLogger(__name__)

# Scores of a group closer together than this (standard deviation, in logits) rank nothing.
COLLAPSED_SPREAD = 0.01
# How near the loss is to that of equal scores, as a share of it.
COLLAPSED_LOSS_MARGIN = 0.01
# A fresh head starts out this way too; it leaves within the first logs unless something is wrong.
COLLAPSED_LOGS = 3
# A GradScaler leaves out a batch that overflows half precision. More in a row are not chance.
MOST_OVERFLOWS = 10


class GroupDataLoader(DataLoader[Group]):
    """A data loader whose batch sampler knows the epoch, and which makes batches ahead of time.

    Args:
        ahead: Batches made during the step, in a thread, where there are no workers: tokenizing
            lets the interpreter go.
        others: What torch's DataLoader takes.
    """

    def __init__(self, *arguments: Any, ahead: int, **others: Any) -> None:
        super().__init__(*arguments, **others)
        self.ahead = ahead

    def __iter__(self) -> Any:
        batches = super().__iter__()
        return batches if self.num_workers else _made_ahead(batches, self.ahead)

    def set_epoch(self, epoch: int) -> None:
        """Pass the epoch on to the batch sampler; the Trainer calls this."""
        if isinstance(self.batch_sampler, GroupBatchSampler):
            self.batch_sampler.set_epoch(epoch)


def _made_ahead(batches: Iterator[Any], count: int) -> Iterator[Any]:
    """Return the same batches, ``count`` of them made in a thread while the caller uses one."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        pending = deque(thread.submit(next, batches, None) for _ in range(count))
        while (batch := pending.popleft().result()) is not None:
            pending.append(thread.submit(next, batches, None))
            yield batch


class RerankerTrainer(Trainer):  # type: ignore[misc]
    """Trains a cross-encoder with one loss over the groups of a step.

    Args:
        model: Gives one logit per pair.
        args: The training arguments.
        train_dataset: Makes the groups.
        data_collator: Makes batches of them.
        ranking_sets: What is ranked at evaluation: ``eval`` (the target) and ``eval_retain``.
        distil: Whether the teacher scores of the batches count.
        others: What transformers.Trainer takes.
    """

    control: Any
    next_command = ""
    """What to run after training, as it is typed."""

    def __init__(
        self,
        model: nn.Module,
        args: RerankerTrainingArguments,
        *,
        train_dataset: GroupDataset,
        data_collator: GroupCollator,
        ranking_sets: dict[str, RankingSet] | None = None,
        distil: bool = False,
        **others: Any,
    ) -> None:
        under_ddp = dist.is_available() and dist.is_initialized()  # of one process, too
        if under_ddp and not args.is_sharded:
            pair = data_collator.encoder([("query", "passage")]).pad([0], always_mask=True)
            prepare_for_ddp(model, args, pair)
        super().__init__(
            model,
            args,
            train_dataset=train_dataset,
            data_collator=data_collator,
            # The Trainer only asks whether there is one; ``evaluate`` is ours.
            eval_dataset=ranking_sets or None,
            **others,
        )
        self.ranking_sets = ranking_sets or {}
        self.distil = distil
        # compute_loss divides by the queries of the whole accumulated batch itself.
        self.loss_is_scaled_for_ga = True
        self.model_accepts_loss_kwargs = True  # says the same to older versions
        self._spread_sum = torch.zeros((), device=args.device)
        self._spread_count = 0
        self._overflows = 0

    def get_train_dataloader(self) -> DataLoader[Group]:
        """Return batches of this process; every example counts once an epoch."""
        collator: GroupCollator = self.data_collator
        sampler = GroupBatchSampler(
            len(self.train_dataset),
            self._train_batch_size,
            seed=self.train_dataset.seed,
            process=self.args.process_index,
            processes=self.args.world_size,
            drop_last=self.args.dataloader_drop_last,
            lend=collator.in_batch_negatives > 0,
        )
        workers = self.args.dataloader_num_workers
        return GroupDataLoader(
            self.train_dataset,
            batch_sampler=sampler,
            collate_fn=collator,
            ahead=self.args.gradient_accumulation_steps,
            num_workers=workers,
            pin_memory=self.args.dataloader_pin_memory and torch.cuda.is_available(),
            persistent_workers=self.args.dataloader_persistent_workers and workers > 0,
            prefetch_factor=self.args.dataloader_prefetch_factor if workers else None,
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator[TrainingBatch], num_batches: int, device: torch.device
    ) -> tuple[list[TrainingBatch], Tensor]:
        """Return the batches of one optimizer step, and their queries on all processes.

        Older versions ask for steps that a resumed epoch does not have any more: they get none.
        """
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        counts = [float(batch["weights"].sum()) for batch in batches]
        queries = torch.tensor(math.fsum(counts), device=device)
        if self.args.world_size > 1:
            dist.all_reduce(queries)
            forwards = [len(batch["micro_batches"]) for batch in batches]
            most_forwards = torch.tensor(forwards, device=device)
            dist.all_reduce(most_forwards, dist.ReduceOp.MAX)
            for batch, own, most in zip(batches, forwards, most_forwards.tolist(), strict=True):
                batch["idle_forwards"] = most - own
        return batches, queries

    def training_step(self, *arguments: Any, **others: Any) -> Tensor:
        """Run forward and backward of one batch; gradient checkpointing attends in both.

        Raises:
            ModelError: The loss is not finite, before the optimizer takes it over into the weights.
        """
        with attention_without_plans():
            loss: Tensor = super().training_step(*arguments, **others)
        self._require_finite(loss)
        return loss

    def autocast_smart_context_manager(self, *arguments: Any, **others: Any) -> Any:
        """Return what surrounds the forwards of a batch, or of an evaluation."""
        if self.args.bf16 and self.args.device.type == "cpu":
            return products_in_bf16(self.model)
        return super().autocast_smart_context_manager(*arguments, **others)

    def _require_finite(self, loss: Tensor) -> None:
        finite = loss.isfinite().int()
        if self.args.world_size > 1:
            dist.all_reduce(finite, dist.ReduceOp.MIN)  # all processes stop together
        self._overflows = 0 if finite.item() else self._overflows + 1
        if self._overflows > (0 if self.accelerator.scaler is None else MOST_OVERFLOWS):
            raise self._diverged("the loss is not a finite number")

    def _diverged(self, found: str) -> ModelError:
        return ModelError(
            f"{found} at step {self.state.global_step}: training has diverged - a model is saved "
            "with finite weights only - start again with a lower learning rate or a longer warmup, "
            "or from a checkpoint"
        )

    def save_model(self, *arguments: Any, **others: Any) -> None:
        """As the Trainer's, with the tokenizer as it was loaded.

        Raises:
            ModelError: A weight is not finite; nothing is written then.
        """
        for name, weight in () if self.args.is_sharded else self.model.named_parameters():
            if weight.numel() and not torch.stack(torch.aminmax(weight.detach())).isfinite().all():
                raise self._diverged(f"{name} is not finite")
        with self.data_collator.encoder.tokenizer_as_it_came():
            super().save_model(*arguments, **others)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: TrainingBatch,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Any:
        """Return this process's part of the mean loss over all queries of the optimizer step."""
        layers = group_scores(model, inputs)  # (K, Q, C)
        present, weights = inputs["present"], inputs["weights"]
        scores = layers[-1]
        losses = torch.stack([LOSSES[self.args.loss](each, present) for each in layers]).sum(0)
        if self.distil and inputs["teacher_scores"] is not None:
            teacher_scores = inputs["teacher_scores"]
            for each in layers:
                losses = losses + self.args.distillation_weight * distillation(
                    each[:, : teacher_scores.shape[1]],
                    teacher_scores,
                    self.args.distillation_temperature,
                )
        else:
            losses = losses + towards_last_layer(layers, present)
        self._spread_sum += scores.detach().std(dim=1).mean()
        self._spread_count += 1
        queries = weights.sum() if num_items_in_batch is None else num_items_in_batch
        # DDP and FSDP average the gradients over the processes; we need their sum.
        loss = (losses * weights).sum() / queries * self.args.world_size
        return (loss, scores) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the spread of the scores within a group since the last log, in logits."""
        if "loss" in logs and self._spread_count:
            logs["score_spread"] = (self._spread_sum / self._spread_count).item()
            self._spread_sum.zero_()
            self._spread_count = 0
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: TrainingBatch) -> int:
        """Of forward and backward: 6 for every weight and token (Kaplan et al., 2020)."""
        tokens = sum(batch["input_ids"].numel() for batch in inputs["micro_batches"])
        return 6 * tokens * self._weights

    @cached_property
    def _weights(self) -> int:
        # Counting them takes milliseconds, and every step asks.
        body: Any = getattr(self.model, "body", self.model)  # of a stack of modules
        return int(body.num_parameters(exclude_embeddings=True))

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Rank the held-out queries: ``eval_ndcg@10`` (target), ``eval_retain_ndcg@10``, and so on.

        Each metric comes with its 95 % interval, ``..._low`` and ``..._high``. ``..._loss`` is the
        softmax cross-entropy over all passages of a query; ``..._score_spread`` the standard
        deviation of its scores, in logits.
        """
        model = self.accelerator.unwrap_model(self.model_wrapped, keep_torch_compile=False)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            model = self.model_wrapped
        was_training = model.training
        model.eval()
        metrics: dict[str, float] = {}
        for name, ranking_set in self.ranking_sets.items():
            prefix = name.replace("eval", metric_key_prefix, 1)
            metrics |= {
                f"{prefix}_{key}": value for key, value in self._rank(model, ranking_set, name)
            }
        model.train(was_training)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def _rank(
        self, model: nn.Module, ranking_set: RankingSet, name: str
    ) -> Iterator[tuple[str, float]]:
        # Without a terminal lines appear instead, which the flag has nothing to do with.
        hidden = self.args.disable_tqdm and on_terminal()
        hidden = hidden or not self.is_world_process_zero()
        score = partial(
            score_encodings,
            model,
            max_tokens=self.data_collator.micro_batch_tokens,
            progress=False if hidden else name,
        )
        with self.autocast_smart_context_manager():
            scores = ranking_set.scores(score)
        relevance = ranking_set.relevance
        if ranking_set.processes > 1:
            parts: list[Any] = [None] * ranking_set.processes
            dist.all_gather_object(parts, (scores, relevance))
            scores, relevance = (interleaved([part[i] for part in parts]) for i in (0, 1))
        for metric, estimate in ranking_metrics(scores, relevance).items():
            yield metric, estimate.mean
            yield f"{metric}_low", estimate.low
            yield f"{metric}_high", estimate.high
        yield "loss", ranking_loss(scores, relevance)
        yield "score_spread", score_spread(scores)


def prepare_for_ddp(
    model: nn.Module, args: RerankerTrainingArguments, inputs: dict[str, Tensor]
) -> None:
    """Spare DDP what this model does not need, unless ``args`` ask for it.

    Args:
        inputs: Of one forward.
    """
    if args.ddp_find_unused_parameters is None:
        # Looking for them costs every forward a walk through its graph, and a warning.
        args.ddp_find_unused_parameters = has_unused_parameters(model, inputs)
    if args.ddp_broadcast_buffers is None:
        # All processes have the same ones. Sent before each forward of a step, they would look
        # changed to the backward of the forwards before (torch below 2.13).
        names = [name for name, _ in model.named_buffers()]
        ignore = DistributedDataParallel._set_params_and_buffers_to_ignore_for_model
        ignore(model, names)  # type: ignore[no-untyped-call]


def has_unused_parameters(model: nn.Module, inputs: dict[str, Tensor]) -> bool:
    """Whether a trained parameter has no part in the scores: the processes' DDP must know.

    Args:
        inputs: Of one forward.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    was_training = model.training
    model.eval()  # without dropout, which would draw from the run's random numbers
    scores = forward_logits(model, to_device(inputs, next(model.parameters()).device))
    model.train(was_training)
    gradients = torch.autograd.grad(scores.sum(), trained, allow_unused=True)
    return any(gradient is None for gradient in gradients)


class BestCheckpointCallback(TrainerCallback):  # type: ignore[misc]
    """Remembers the best checkpoint with --save_strategy best, where transformers 4 does not.

    Every checkpoint is then the best so far; without this none would be loaded at the end.
    """

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Called where a checkpoint has just been written."""
        if args.save_strategy == "best":
            state.best_model_checkpoint = _checkpoint(args, state)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start a resumed run from the best checkpoint, which did not know it."""
        if state.best_model_checkpoint is None and Path(_checkpoint(args, state)).is_dir():
            self.on_save(args, state, control)


def _checkpoint(args: Any, state: Any) -> str:
    return str(Path(args.output_dir) / f"checkpoint-{state.global_step}")


class CollapseCallback(TrainerCallback):  # type: ignore[misc]
    """Says once that the model has collapsed: all scores alike, the loss that of a guess.

    Args:
        columns: C, passages a query is scored against.
    """

    def __init__(self, columns: int) -> None:
        self.guess = math.log(columns)
        self.logs = 0

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        if not logs or "score_spread" not in logs or "loss" not in logs:
            return
        at_guess = abs(logs["loss"] - self.guess) < COLLAPSED_LOSS_MARGIN * self.guess
        self.logs = self.logs + 1 if at_guess and logs["score_spread"] < COLLAPSED_SPREAD else 0
        if self.logs == COLLAPSED_LOGS and state.is_world_process_zero:
            logger.warning(
                "The model has collapsed at step %d: the loss is %.3f, ln(%d passages) is %.3f, "
                "and the scores of a query spread by %.1e - a model ranks by its scores - "
                "start again with a lower learning rate or a longer warmup.",
                state.global_step,
                logs["loss"],
                round(math.exp(self.guess)),
                self.guess,
                logs["score_spread"],
            )
