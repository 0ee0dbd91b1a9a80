"""Cross-encoders that sentence-transformers 6 stores as modules: a transformer, pooling, Dense."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from reranker_ft.errors import ModelError

POOLINGS = ("cls", "mean", "max", "lasttoken")
_OLD_POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "lasttoken",
}
_ACTIVATIONS = {
    name: getattr(nn, name) for name in ("Identity", "Tanh", "ReLU", "GELU", "SiLU", "Sigmoid")
}


class ModuleStack(nn.Module):
    """A transformer whose pooled states go through dense layers to one logit.

    Args:
        body: A transformers model without a head.
        pooling: ``cls``, ``mean``, ``max`` or ``lasttoken``.
        layers: Dense layers with their activations; the last one gives one number.
        texts: The JSON files that describe the modules, by their path in the model's folder.
        places: The folders of the Dense layers there, in order.
    """

    def __init__(
        self,
        body: Any,
        pooling: str,
        layers: nn.Sequential,
        texts: Mapping[str, Any],
        places: Sequence[str],
    ) -> None:
        super().__init__()
        self.body = body
        self.pooling = pooling
        self.layers = layers
        self.config = body.config
        self._texts = dict(texts)
        self._places = list(places)

    @property
    def device(self) -> torch.device:
        """Return where the transformer is."""
        device: torch.device = self.body.device
        return device

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the modules in the layout that they were read from."""
        folder = Path(folder)
        self.body.save_pretrained(folder)
        for name, value in self._texts.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
        linears = [layer for layer in self.layers if isinstance(layer, nn.Linear)]
        for place, linear in zip(self._places, linears, strict=True):
            state = {
                f"linear.{key}": each.contiguous() for key, each in linear.state_dict().items()
            }
            save_file(state, folder / place / "model.safetensors", {"format": "pt"})

    def get_input_embeddings(self) -> Any:
        """Return the embeddings of the transformer."""
        return self.body.get_input_embeddings()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        **inputs: Tensor,
    ) -> Any:
        """Return an output whose ``logits`` are (B, 1)."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        states = self.body(
            input_ids=input_ids, attention_mask=attention_mask, **inputs
        ).last_hidden_state
        return SimpleNamespace(logits=self.layers(_pooled(states, mask, self.pooling)))


def _pooled(states: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """Return (B, H) of (B, L, H) states."""
    places = torch.arange(mask.shape[1], device=mask.device)
    rows = torch.arange(len(mask), device=mask.device)
    if pooling == "cls":
        return states[rows, mask.argmax(dim=1)]
    if pooling == "lasttoken":
        return states[rows, (places * mask).argmax(dim=1)]
    if pooling == "max":
        return states.masked_fill(mask[:, :, None] == 0, float("-inf")).max(dim=1).values
    weights = mask[:, :, None].to(states.dtype)
    return (states * weights).sum(dim=1) / weights.sum(dim=1)


def make_stack(name: str, body: Any, modules: list[Any], read_json: Any, locate: Any) -> nn.Module:
    """Build the stack that a ``modules.json`` lists around its transformer.

    Args:
        name: Of the model, for messages.
        modules: The entries of ``modules.json``.
        read_json: Reads a JSON file of the model by its path there; ``None`` if it is absent.
        locate: Finds a file of the model by its path there; ``None`` if it is absent.

    Raises:
        ModelError: A module is of another type, or the last gives more than one number.
    """
    pooling, layers, places = None, [], []
    texts: dict[str, Any] = {"modules.json": modules}
    for file in ("sentence_bert_config.json", "config_sentence_transformers.json"):
        texts[file] = read_json(file)
    for module in modules[1:]:
        kind, path = str(module.get("type", "")).rsplit(".", 1)[-1], str(module.get("path", ""))
        config = read_json(f"{path}/config.json") or {}
        texts[f"{path}/config.json"] = config
        if kind == "Pooling":
            pooling = _pooling(name, config)
        elif kind == "Dense":
            layers += _dense(name, path, config, locate)
            places.append(path)
        elif kind != "Dropout":
            raise ModelError(
                f"{name} has the module {kind} - a reranker's modules are a transformer with "
                "LogitScore, or with Pooling and Dense - score it with sentence-transformers"
            )
    if pooling is None or not layers or layers[-2].out_features != 1:
        raise ModelError(
            f"{name} has modules that do not end in one score - a reranker pools and has a Dense "
            "of one output - name a trained reranker"
        )
    texts = {file: value for file, value in texts.items() if value is not None}
    return ModuleStack(body, pooling, nn.Sequential(*layers), texts, places)


def _pooling(name: str, config: dict[str, Any]) -> str:
    mode = config.get("pooling_mode")
    found = (
        [mode]
        if mode is not None
        else [pooling for key, pooling in _OLD_POOLINGS.items() if config.get(key)]
    )
    if len(found) != 1 or found[0] not in POOLINGS:
        raise ModelError(
            f"{name} pools by {found} - there are {', '.join(POOLINGS)} - score it with "
            "sentence-transformers"
        )
    return str(found[0])


def _dense(name: str, path: str, config: dict[str, Any], locate: Any) -> list[Any]:
    activation = str(config.get("activation_function") or "torch.nn.Identity")
    make = _ACTIVATIONS.get(activation.rsplit(".", 1)[-1])
    weights = locate(f"{path}/model.safetensors")
    if make is None or not activation.startswith("torch.") or config.get("use_residual"):
        raise ModelError(
            f"{name} has a Dense with {activation} - read are those of torch.nn without a residual "
            "- score it with sentence-transformers"
        )
    if weights is None:
        raise ModelError(
            f"{name} lacks {path}/model.safetensors - the folder is incomplete - copy it"
        )
    state = load_file(Path(weights))
    width, size = state["linear.weight"].shape
    linear = nn.Linear(size, width, bias="linear.bias" in state)
    linear.load_state_dict({key.removeprefix("linear."): value for key, value in state.items()})
    return [linear, make()]
