"""Write a language-model reranker as a classifier with one logit, for servers that take only those.

The score of a language model is ``(w_yes - w_no) . h`` with rows ``w`` of its output embedding and
the last hidden state ``h``: a linear head of one logit, exactly.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cocktail.checkpoint.companions import companion_files
from cocktail.checkpoint.kinds import LANGUAGE_RERANKER, architecture
from cocktail.checkpoint.model import MAIN, Checkpoint
from cocktail.checkpoint.ties import is_tied
from cocktail.errors import CheckpointError, OutputError
from cocktail.system.temporary import folder_prefix
from cocktail.tensors.dtypes import ITEM_SIZE
from cocktail.tensors.headers import build_header
from cocktail.tensors.info import TensorInfo
from cocktail.tensors.reading import BLOCK, TensorReader, block_bounds
from cocktail.write.place import output_folder, standing_problem

HEAD = "score.weight"
_OUTPUTS = ("lm_head.weight", "embed_out.weight")
_INPUTS = ("model.embed_tokens.weight", "transformer.wte.weight", "gpt_neox.embed_in.weight")
# What some classes do to the logits beyond the output embedding.
_SCALES = ("logit_scale", "logits_scaling", "final_logit_softcapping")
# Files of a sentence-transformers stack; the classifier is loaded without one.
_STACK = ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json")


def to_classifier(
    checkpoint: Checkpoint, output: Path, record: Mapping[str, Any], *, overwrite: bool = False
) -> None:
    """Write the one-logit ``*ForSequenceClassification`` that scores as the model does.

    Tensors are copied block by block. The head is written in fp32, in which the difference of two
    rows is exact up to one rounding.

    Args:
        record: how the model scores (``yes_token_id``, ``no_token_id``, ``prompt``); the output's
            config keeps the prompt.
        overwrite: replace an existing model at ``output``.

    Raises:
        CheckpointError: the model's class has no such classifier, or does more to its logits than
            a linear head does.
        OutputError: the output already exists, or cannot be written.
    """
    name = classifier_class(checkpoint)
    source = _output_rows(checkpoint)
    output = output_folder(output)
    problem = standing_problem(output, overwrite=overwrite)
    if problem is not None:
        raise OutputError(problem)
    staged = output.parent / f"{folder_prefix(output)}{os.getpid()}"
    try:
        staged.mkdir(parents=True)
        for relative, path in companion_files(checkpoint).items():
            flat = Path(relative).name
            if relative not in _STACK and "LogitScore" not in relative:
                shutil.copyfile(path, staged / flat)
        config = _config(checkpoint, name, record)
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        (staged / "config.json").write_text(text, encoding="utf-8")
        _write_weights(checkpoint, staged / "model.safetensors", source, record)
        if output.exists():
            shutil.rmtree(output)
        staged.rename(output)
    except OSError as error:
        raise OutputError(f"{output}: cannot be written ({error.strerror})") from None
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def classifier_class(checkpoint: Checkpoint) -> str:
    """The classifier class of the model's family.

    Raises:
        CheckpointError: transformers has none, or the logits are not linear in the last state.
    """
    import transformers  # noqa: PLC0415 - seconds to import

    found = architecture(checkpoint.config)
    end = next((e for e in LANGUAGE_RERANKER.architectures if found.endswith(e)), None)
    name = "" if end is None else f"{found.removesuffix(end)}ForSequenceClassification"
    if not name or not hasattr(transformers, name):
        raise CheckpointError(
            f"{checkpoint.reference}: is a {found or 'model without a named class'} - transformers "
            "has no classifier for that family - convert a language model that has one"
        )
    changed = [key for key in _SCALES if checkpoint.config.get(key) not in (None, 1, 1.0)]
    if changed:
        raise CheckpointError(
            f"{checkpoint.reference}: {changed[0]} is {checkpoint.config[changed[0]]} - a linear "
            "head cannot transform its logit - serve the language model itself"
        )
    return name


def _output_rows(checkpoint: Checkpoint) -> TensorInfo:
    tensors = checkpoint.parts[MAIN].tensors
    names: tuple[str, ...] = _OUTPUTS
    if not any(name in tensors for name in _OUTPUTS) and is_tied(checkpoint.config) is not False:
        names = _INPUTS
    for name in names:
        if name in tensors:
            return tensors[name]
    raise CheckpointError(
        f"{checkpoint.reference}: has none of {', '.join(names)} - the head is made from rows of "
        "the output embedding - convert a language model that has one"
    )


def _config(checkpoint: Checkpoint, name: str, record: Mapping[str, Any]) -> dict[str, Any]:
    config = dict(checkpoint.config)
    config["architectures"] = [name]
    config |= {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    config["sentence_transformers"] = {"activation_fn": "torch.nn.modules.linear.Identity"}
    config["reranker"] = {**record, "yes_token_id": None, "no_token_id": None}
    return config


def _write_weights(
    checkpoint: Checkpoint, path: Path, source: TensorInfo, record: Mapping[str, Any]
) -> None:
    tensors = {
        name: info for name, info in checkpoint.parts[MAIN].tensors.items() if name not in _OUTPUTS
    }
    shapes = {name: (info.read_dtype, info.shape) for name, info in tensors.items()}
    shapes[HEAD] = ("F32", (1, source.shape[1]))
    header, _ = build_header(
        [(name, dtype, shape) for name, (dtype, shape) in shapes.items()], {"format": "pt"}
    )
    with path.open("wb") as file, TensorReader() as reader:
        file.write(header)
        buffer = np.empty(BLOCK * 8, np.uint8)
        for info in tensors.values():
            for start, stop in block_bounds(info.numel):
                file.write(reader.read_bytes(info, start, stop, buffer).data)
        file.write(_head(reader, source, record).numpy().tobytes())


def _head(reader: TensorReader, source: TensorInfo, record: Mapping[str, Any]) -> torch.Tensor:
    """(H,) fp32: the row of "yes" minus that of "no"."""
    yes, no = record["yes_token_id"], record["no_token_id"]
    head = _row(reader, source, yes)
    return head if no is None else head - _row(reader, source, no)


def _row(reader: TensorReader, source: TensorInfo, row: int) -> torch.Tensor:
    width = source.shape[1]
    buffer = torch.empty(width * ITEM_SIZE[source.read_dtype], dtype=torch.uint8)
    values: torch.Tensor = reader.read(source, row * width, (row + 1) * width, buffer)
    return values.float()
