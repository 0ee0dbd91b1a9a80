"""Present the files of an adapter and of its base as those of one model.

Loaders of configs and tokenizers take a folder. The adapter's own files come first, the base's fill
the gaps, and the config is made to fit a head that the adapter brings.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cocktail.checkpoint.adapter.config import LoraConfig
from cocktail.checkpoint.companions import companions_in, is_tokenizers
from cocktail.checkpoint.folder import read_json
from cocktail.checkpoint.model import Checkpoint
from cocktail.errors import CheckpointError, listed
from cocktail.system.temporary import View
from cocktail.tensors.info import TensorInfo

# The last layer of a head, which has one row per label.
_LABEL_LAYERS = ("out_proj", "classifier", "score", "logits_proj")
_SEQUENCE_CLASS = "ForSequenceClassification"


def make_view(base: Checkpoint, adapter: Path, main: str, config: Mapping[str, Any]) -> View:
    """Link the companions of both into a temporary folder.

    Args:
        main: the sub-folder for the model's config and tokenizer; the top folder where the adapter
            has modules of its own.
        config: the content of ``config.json``.

    Raises:
        CheckpointError: the temporary folder cannot be made.
    """
    own = companions_in(adapter)
    has_modules = "modules.json" in own
    source = base.main_folder if has_modules else base.folder
    links = {
        name: source / name for name in companions_in(source) if not has_modules or "/" not in name
    }
    if any(is_tokenizers(Path(name)) for name in own):
        # A tokenizer is one set of files; halves of two different ones would mean neither.
        links = {name: path for name, path in links.items() if not is_tokenizers(path)}
    links["README.md"] = base.folder / "README.md"
    for name in own:
        links[name if has_modules or "/" in name else f"{main}/{name}".lstrip("/")] = adapter / name
    links.pop(f"{main}/config.json".lstrip("/"), None)
    try:
        view = View()
        for name, path in links.items():
            target = view.folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.is_file():
                target.symlink_to(path.resolve())
        target = view.folder / main / "config.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise CheckpointError(
            f"{adapter}: no temporary folder can be made to combine it with its base "
            f"({error.strerror or error}) - TMPDIR says where - make room there"
        ) from None
    return view


def own_config(base: Checkpoint, adapter: Path) -> dict[str, Any]:
    """The adapter's own ``config.json``, or the base's.

    Without what it says of quantisation: the base was held like that in training (QLoRA), and the
    adapter is added to its weights as they are.
    """
    path = adapter / "config.json"
    config = read_json(path) if path.is_file() else dict(base.config)
    config.pop("quantization_config", None)
    return config


def fitted_config(
    config: dict[str, Any], lora: LoraConfig, added: Mapping[str, TensorInfo], adapter: str
) -> dict[str, Any]:
    """Make a config describe the model with the head that the adapter brings.

    Args:
        added: the head's tensors.
        adapter: what messages call it.

    Raises:
        CheckpointError: no class with that head is known.
    """
    architecture = _architecture(config)
    if not added or architecture.endswith(_SEQUENCE_CLASS) or architecture == lora.model_class:
        return config
    name = lora.model_class or (_sequence_class(config) if lora.task == "SEQ_CLS" else None)
    if name is None:
        raise CheckpointError(
            f"{adapter}: brings {listed(list(added))} for the task {lora.task!r}, but its base is "
            f"a {architecture or 'model without architectures'} - the config must name a class "
            "with that head - put a config.json with its architectures beside the adapter"
        )
    fitted = {**config, "architectures": [name]}
    labels = _count_labels(added)
    if labels is not None and len(config.get("id2label") or ()) != labels:
        fitted.pop("num_labels", None)
        fitted["id2label"] = {str(i): f"LABEL_{i}" for i in range(labels)}
        fitted["label2id"] = {f"LABEL_{i}": i for i in range(labels)}
    return fitted


def _architecture(config: Mapping[str, Any]) -> str:
    names = config.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else ""


def _sequence_class(config: Mapping[str, Any]) -> str | None:
    """The class that scores sequences with a model of this type."""
    from transformers.models.auto import modeling_auto  # noqa: PLC0415 - seconds to import

    custom = (config.get("auto_map") or {}).get(f"AutoModel{_SEQUENCE_CLASS}")
    if custom is not None:
        return str(custom).rpartition(".")[2]
    names = modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
    name = names.get(config.get("model_type"))
    return None if name is None else str(name)


def _count_labels(added: Mapping[str, TensorInfo]) -> int | None:
    """Rows of the head's last layer."""
    for layer in _LABEL_LAYERS:
        for name, info in added.items():
            if name.endswith(f"{layer}.weight") and len(info.shape) == 2:
                return info.shape[0]
    return None
