"""Fit a run's arguments to the machine: precision, device, number of processes."""

from __future__ import annotations

import os
from typing import Any

import torch
from transformers import __version__

from reranker_ft.errors import ArgumentError
from reranker_ft.model.precision import cpu_computes_in_bf16

_PRECISION = "ACCELERATE_MIXED_PRECISION"
_LAUNCHED_WITH = os.environ.get(_PRECISION)  # by accelerate launch
_OR_PROCESSOR = "or a processor that is faster in bf16, and there is none"


def settle_precision(args: Any) -> list[str]:
    """Keep half precision where the hardware has it; else take fp32 and return a note of it.

    On a CPU that computes in bf16, both flags mean bf16.
    """
    if __version__.startswith("4."):
        _forget_other_runs()
    has_gpu = torch.cuda.is_available() and not args.use_cpu
    other = torch.backends.mps.is_available() and not args.use_cpu
    asked = [name for name in ("fp16", "bf16") if getattr(args, name)]
    if len(asked) == 1 and not (has_gpu or other) and cpu_computes_in_bf16():
        args.fp16, args.bf16 = False, True
        return []
    notes = []
    if args.fp16 and not has_gpu and not other:
        args.fp16 = False
        notes.append(f"--fp16 needs a GPU, {_OR_PROCESSOR}: training in fp32.")
    if args.bf16 and not (has_gpu and torch.cuda.is_bf16_supported()):
        args.bf16 = False
        found = "and this GPU does not have it" if has_gpu else _OR_PROCESSOR
        notes.append(f"--bf16 needs a GPU with bf16, {found}: training in fp32.")
    return notes


def _forget_other_runs() -> None:
    """Undo what transformers 4 leaves behind: a later run in fp32 would compute in bf16, too."""
    if _LAUNCHED_WITH is None:
        os.environ.pop(_PRECISION, None)
    else:
        os.environ[_PRECISION] = _LAUNCHED_WITH


def settle_device(args: Any) -> None:
    """Say that the CPU is meant where there is nothing else.

    Left unsaid, accelerate takes each of several processes on a CPU for the only one.
    """
    if not _has_accelerator():
        args.use_cpu = True


def check_processes(args: Any) -> None:
    """Refuse processes that would each train alone and write over the others' output.

    Raises:
        ArgumentError: More were started than would train together.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1
    if launched != args.world_size:
        raise ArgumentError(
            f"{launched} processes were started and {args.world_size} would train together on "
            f"{args.device} - processes share the work - start one, or add --use_cpu True"
        )


def _has_accelerator() -> bool:
    """Whether there is anything but a CPU to train on."""
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        return True
    accelerator = getattr(torch, "accelerator", None)  # from torch 2.6 on
    return accelerator is not None and bool(accelerator.is_available())
