"""Write a reranker in another form that scores the same: a classifier, or a stack of modules.

The score of a language model is ``(w_yes - w_no) . h`` with rows ``w`` of its output embedding and
the last hidden state ``h``: a linear head of one logit, exactly. What a stack of modules does to
pooled states, some classifiers do as well: then tensors change their names and nothing else.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cocktail.checkpoint.companions import companion_files
from cocktail.checkpoint.detect import kind_of
from cocktail.checkpoint.folder import read_json
from cocktail.checkpoint.kinds import (
    KINDS,
    LANGUAGE_RERANKER,
    STACK_RERANKER,
    architecture,
)
from cocktail.checkpoint.model import MAIN, Checkpoint
from cocktail.checkpoint.ties import is_tied
from cocktail.errors import CheckpointError, OutputError
from cocktail.system.temporary import folder_prefix
from cocktail.tensors.dtypes import ITEM_SIZE
from cocktail.tensors.headers import build_header
from cocktail.tensors.info import TensorInfo
from cocktail.tensors.reading import BLOCK, TensorReader, block_bounds
from cocktail.write.heads import CLASSIFIER, Head, head_of
from cocktail.write.place import output_folder, standing_problem

SEQUENCE_CLASSIFICATION = "sequence-classification"
MODULE_STACK = "module-stack"
FORMS = (SEQUENCE_CLASSIFICATION, MODULE_STACK)

_SCORE = "score.weight"
_OUTPUTS = ("lm_head.weight", "embed_out.weight")
_INPUTS = ("model.embed_tokens.weight", "transformer.wte.weight", "gpt_neox.embed_in.weight")
# What some classes do to the logits beyond the output embedding.
_SCALES = ("logit_scale", "logits_scaling", "final_logit_softcapping")
_SETTINGS = "config_sentence_transformers.json"
# Of a stack; a classifier is loaded without them.
_STACK = ("modules.json", "sentence_bert_config.json", _SETTINGS)
_RAW = "torch.nn.modules.linear.Identity"


@dataclass
class _Form:
    """What is written.

    Attributes:
        config: its ``config.json``.
        tensors: by file and name: read, or made here.
        texts: further JSON files.
    """

    config: dict[str, Any]
    tensors: dict[str, dict[str, TensorInfo | torch.Tensor]]
    texts: dict[str, Any] = field(default_factory=dict)


def convert(
    checkpoint: Checkpoint,
    output: Path,
    form: str,
    *,
    record: Mapping[str, Any] | None = None,
    finish: Callable[[Path], None] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a reranker in another form. Tensors pass block by block.

    Args:
        form: ``sequence-classification``, the ``*ForSequenceClassification`` with one logit; or
            ``module-stack``, the modules that sentence-transformers 6 stores.
        record: how a language model scores (``yes_token_id``, ``no_token_id``, ``prompt``); a
            classifier's config keeps the prompt.
        finish: writes into the new folder what makes a stack of a language model.
        overwrite: replace a model that stands at ``output``.

    Raises:
        CheckpointError: the model has this form by now, or no form of this kind scores the same.
        OutputError: something stands at the output, or it cannot be written.
    """
    made = _formed(checkpoint, form, record)
    output = output_folder(output)
    problem = standing_problem(output, overwrite=overwrite)
    if problem is not None:
        raise OutputError(problem)
    staged = output.parent / f"{folder_prefix(output)}{os.getpid()}"
    try:
        staged.mkdir(parents=True)
        _write(checkpoint, made, staged)
        if finish is not None and record is not None and form == MODULE_STACK:
            finish(staged)
        if output.exists():
            shutil.rmtree(output)
        staged.rename(output)
    except OSError as error:
        raise OutputError(f"{output}: cannot be written ({error.strerror})") from None
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _formed(checkpoint: Checkpoint, form: str, record: Mapping[str, Any] | None) -> _Form:
    kind, stacked = kind_of(checkpoint), (checkpoint.folder / "modules.json").is_file()
    if kind is not None and kind.name == "reranker":
        if form == SEQUENCE_CLASSIFICATION and kind is STACK_RERANKER:
            return _classifier_of_stack(checkpoint)
        if form == MODULE_STACK and kind is KINDS["reranker"]:
            return _stack_of_classifier(checkpoint)
        if form == MODULE_STACK and kind is LANGUAGE_RERANKER and not stacked:
            config = {k: v for k, v in checkpoint.config.items() if k != "reranker"}
            return _Form(config, {"model.safetensors": dict(checkpoint.parts[MAIN].tensors)})
        if kind is not LANGUAGE_RERANKER or form == MODULE_STACK:
            raise CheckpointError(
                f"{checkpoint.reference}: is a {form} by now - a conversion changes the form - "
                f"choose {' or '.join(each for each in FORMS if each != form)}, or leave it"
            )
    if record is None:
        raise CheckpointError(
            f"{checkpoint.reference}: is no reranker ({architecture(checkpoint.config)}) - a "
            "conversion keeps the scores of pairs - convert a trained reranker"
        )
    return _classifier_of_language_model(checkpoint, record)


def _classifier_of_language_model(checkpoint: Checkpoint, record: Mapping[str, Any]) -> _Form:
    """The head is written in fp32, where the difference of two rows is exact up to one rounding."""
    name, source = classifier_class(checkpoint), _output_rows(checkpoint)
    tensors: dict[str, TensorInfo | torch.Tensor] = {
        key: info for key, info in checkpoint.parts[MAIN].tensors.items() if key not in _OUTPUTS
    }
    with TensorReader() as reader:
        tensors[_SCORE] = _yes_less_no(reader, source, record)
    config = _classifiers_config(checkpoint, name, _RAW)
    config["reranker"] = {**record, "yes_token_id": None, "no_token_id": None}
    return _Form(config, {"model.safetensors": tensors})


def _classifier_of_stack(checkpoint: Checkpoint) -> _Form:
    name = f"{architecture(checkpoint.config).removesuffix('Model')}{CLASSIFIER}"
    head = head_of(name)
    pooling, layers = _pooling_and_layers(checkpoint)
    has = [(activation, "linear.bias" in tensors) for activation, tensors in layers]
    if (
        head is None
        or pooling != head.pooling
        or has != [(e.activation, e.bias) for e in head.layers]
    ):
        wanted = "no class of transformers is known for it" if head is None else _told(head)
        raise CheckpointError(
            f"{checkpoint.reference}: pools by {pooling} and has dense layers with "
            f"{', '.join(activation for activation, _ in has)}; {name}: {wanted} - a conversion "
            "keeps the scores - serve the stack itself"
        )
    tensors: dict[str, TensorInfo | torch.Tensor] = {
        f"{head.prefix}.{key.removeprefix(f'{head.prefix}.')}": info
        for key, info in checkpoint.parts[MAIN].tensors.items()
        if not key.startswith(("pooler.", f"{head.prefix}.pooler."))
    }
    for layer, (_, parts) in zip(head.layers, layers, strict=True):
        for key, info in parts.items():
            tensors[f"{layer.name}.{key.removeprefix('linear.')}"] = info
    settings = checkpoint.folder / _SETTINGS
    activation = read_json(settings).get("activation_fn") if settings.is_file() else None
    config = _classifiers_config(checkpoint, name, activation or _RAW)
    return _Form(config, {"model.safetensors": tensors})


def _pooling_and_layers(
    checkpoint: Checkpoint,
) -> tuple[str, list[tuple[str, Mapping[str, TensorInfo]]]]:
    """How a stack pools, and its dense layers: the activation, and the tensors."""
    pooling, layers = "nothing", []
    for module in json.loads((checkpoint.folder / "modules.json").read_text(encoding="utf-8"))[1:]:
        kind, path = str(module["type"]).rsplit(".", 1)[-1], str(module["path"])
        settings = checkpoint.folder / path / "config.json"
        values = read_json(settings) if settings.is_file() else {}
        if kind == "Pooling":
            old = {"pooling_mode_cls_token": "cls", "pooling_mode_lasttoken": "lasttoken"}
            found = [mode for key, mode in old.items() if values.get(key)]
            pooling = str(
                values.get("pooling_mode", found[0] if len(found) == 1 else "another way")
            )
        elif kind == "Dense" and not values.get("use_residual"):
            activation = str(values.get("activation_function") or "Identity").rsplit(".", 1)[-1]
            layers.append((activation, checkpoint.parts[path].tensors))
        elif kind != "Dropout":
            layers.append((kind, {}))
    return pooling, layers


def _told(head: Head) -> str:
    layers = ", ".join(
        f"{layer.activation} {'with' if layer.bias else 'without'} a bias" for layer in head.layers
    )
    return f"pools by {head.pooling} and has {layers}"


def _stack_of_classifier(checkpoint: Checkpoint) -> _Form:
    name, tensors = architecture(checkpoint.config), checkpoint.parts[MAIN].tensors
    head = head_of(name)
    if head is None or isinstance(checkpoint.config.get("reranker"), dict):
        why = (
            "its head is none of pooling and dense layers" if head is None else "it reads a prompt"
        )
        raise CheckpointError(
            f"{checkpoint.reference}: {why} ({name}) - a stack of modules scores pairs of texts by "
            "pooling and dense layers - serve the classifier itself"
        )
    named = [(layer, _layers_tensors(checkpoint, layer.name)) for layer in head.layers]
    rows = named[-1][1]["linear.weight"].shape[0]
    if rows != 1:
        raise CheckpointError(
            f"{checkpoint.reference}: gives {rows} logits - a reranker gives one - convert a "
            "reranker"
        )
    body: dict[str, TensorInfo | torch.Tensor] = {
        key.removeprefix(f"{head.prefix}."): info
        for key, info in tensors.items()
        if key.startswith(f"{head.prefix}.")
    }
    config = dict(checkpoint.config)
    config["architectures"] = [f"{name.removesuffix(CLASSIFIER)}Model"]
    settings = config.pop("sentence_transformers", None) or {}
    for key in ("id2label", "label2id", "problem_type"):
        config.pop(key, None)
    made = _Form(config, {"model.safetensors": body}, _stacks_texts(head, named, settings))
    for number, (_, parts) in enumerate(named, 2):
        made.tensors[f"{number}_Dense/model.safetensors"] = dict(parts)
    return made


def _layers_tensors(checkpoint: Checkpoint, name: str) -> dict[str, TensorInfo]:
    tensors = checkpoint.parts[MAIN].tensors
    found = {
        f"linear.{end}": tensors[f"{name}.{end}"]
        for end in ("weight", "bias")
        if f"{name}.{end}" in tensors
    }
    if "linear.weight" not in found:
        raise CheckpointError(
            f"{checkpoint.reference}: lacks {name}.weight - it is a layer of its head - check that "
            "the model is whole"
        )
    return found


def _stacks_texts(
    head: Head, named: list[tuple[Any, dict[str, TensorInfo]]], settings: Mapping[str, Any]
) -> dict[str, Any]:
    width = named[0][1]["linear.weight"].shape[1]
    base = "sentence_transformers.base.modules"
    types = [
        f"{base}.transformer.Transformer",
        "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
        *[f"{base}.dense.Dense"] * len(named),
    ]
    paths = ["", "1_Pooling", *(f"{number}_Dense" for number in range(2, len(types)))]
    texts: dict[str, Any] = {
        "modules.json": [
            {"idx": number, "name": str(number), "path": path, "type": kind}
            for number, (path, kind) in enumerate(zip(paths, types, strict=True))
        ],
        "sentence_bert_config.json": {
            "transformer_task": "feature-extraction",
            "modality_config": {
                "text": {"method": "forward", "method_output_name": "last_hidden_state"}
            },
            "module_output_name": "token_embeddings",
        },
        _SETTINGS: {
            "activation_fn": settings.get("activation_fn", _RAW),
            "default_prompt_name": None,
            "model_type": "CrossEncoder",
            "prompts": {},
        },
        "1_Pooling/config.json": {
            "embedding_dimension": width,
            "pooling_mode": head.pooling,
            "include_prompt": True,
        },
    }
    for path, (layer, parts) in zip(paths[2:], named, strict=True):
        rows, columns = parts["linear.weight"].shape
        module = "linear" if layer.activation == "Identity" else "activation"
        texts[f"{path}/config.json"] = {
            "in_features": columns,
            "out_features": rows,
            "bias": "linear.bias" in parts,
            "activation_function": f"torch.nn.modules.{module}.{layer.activation}",
            "module_input_name": "sentence_embedding",
            "module_output_name": "scores" if path == paths[-1] else "sentence_embedding",
        }
    return texts


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


def _classifiers_config(checkpoint: Checkpoint, name: str, activation: str) -> dict[str, Any]:
    config = dict(checkpoint.config)
    config["architectures"] = [name]
    config |= {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    config["sentence_transformers"] = {"activation_fn": activation}
    return config


def _write(checkpoint: Checkpoint, made: _Form, folder: Path) -> None:
    listed = checkpoint.folder / "modules.json"
    found = json.loads(listed.read_text(encoding="utf-8"))[1:] if listed.is_file() else []
    modules = {str(module["path"]) for module in found}
    for relative, path in companion_files(checkpoint).items():
        where = Path(relative).parent.as_posix()
        beside_weights = where in (".", checkpoint.parts[MAIN].folder)
        if Path(relative).name in _STACK or where in modules:
            continue
        target = folder / (Path(relative).name if beside_weights else relative)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    for relative, value in {**made.texts, "config.json": made.config}.items():
        (folder / relative).parent.mkdir(exist_ok=True)
        text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
        (folder / relative).write_text(text, encoding="utf-8")
    for relative, tensors in made.tensors.items():
        (folder / relative).parent.mkdir(exist_ok=True)
        _write_weights(folder / relative, tensors)


def _write_weights(path: Path, tensors: Mapping[str, TensorInfo | torch.Tensor]) -> None:
    shapes = [
        (name, "F32", tuple(each.shape))
        if isinstance(each, torch.Tensor)
        else (name, each.read_dtype, each.shape)
        for name, each in tensors.items()
    ]
    header, _ = build_header(shapes, {"format": "pt"})
    with path.open("wb") as file, TensorReader() as reader:
        file.write(header)
        buffer = np.empty(BLOCK * 8, np.uint8)
        for each in tensors.values():
            if isinstance(each, torch.Tensor):
                file.write(each.numpy().tobytes())
                continue
            for start, stop in block_bounds(each.numel):
                file.write(reader.read_bytes(each, start, stop, buffer).data)


def _yes_less_no(
    reader: TensorReader, source: TensorInfo, record: Mapping[str, Any]
) -> torch.Tensor:
    """(1, H) fp32: the row of "yes" minus that of "no"."""
    yes, no = record["yes_token_id"], record["no_token_id"]
    head = _row(reader, source, yes)
    return (head if no is None else head - _row(reader, source, no))[None]


def _row(reader: TensorReader, source: TensorInfo, row: int) -> torch.Tensor:
    width = source.shape[1]
    buffer = torch.empty(width * ITEM_SIZE[source.read_dtype], dtype=torch.uint8)
    values: torch.Tensor = reader.read(source, row * width, (row + 1) * width, buffer)
    return values.float()
