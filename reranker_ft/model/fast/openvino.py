"""A cross-encoder run by OpenVINO on a CPU, for scoring.

The model is traced once, with the last layer at the first token alone where the head reads no
other, and compiled for the processor, batches and lengths left open.
"""

from __future__ import annotations

import importlib
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from reranker_ft.errors import ArgumentError, ModelError, one_line
from reranker_ft.model.fast.first_token import last_layer_at_first_token, layers_below_first_token
from reranker_ft.model.turns import turn

_AGREES = 1e-4
"""How near the scores are to those of torch, relative to numbers of about 1; in bf16 .05."""
_AGREES_IN_BF16 = 0.05
_kept: WeakKeyDictionary[nn.Module, _Compiled] = WeakKeyDictionary()


class _Traced(nn.Module):
    """A model that takes tensors in a known order and gives (B, 1) logits."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self._names = names

    def forward(self, *tensors: Tensor) -> Tensor:
        logits: Tensor = self.model(**dict(zip(self._names, tensors, strict=True))).logits
        return logits


class _Compiled:
    """A compiled model: (B, L) inputs to (B, 1) logits."""

    def __init__(self, model: nn.Module, example: dict[str, Tensor], precision: str) -> None:
        self._names = list(example)
        graph = _converted(_Traced(model, self._names), tuple(example.values()))
        settings = {
            # One batch at a time, on all threads: scoring waits for each.
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "INFERENCE_PRECISION_HINT": precision,
        }
        compiled = _core().compile_model(graph, "CPU", settings)
        self._request = compiled.create_infer_request()

    def __call__(self, inputs: dict[str, Tensor]) -> Tensor:
        """Return (B, 1) logits of model inputs (B, L); no mask means that all tokens count."""
        given = {"attention_mask": torch.ones_like(inputs["input_ids"]), **inputs}
        found = self._request.infer([given[name].numpy() for name in self._names])
        logits: Tensor = torch.from_numpy(found[0].copy())
        return logits


def _openvino() -> Any:
    """Import OpenVINO without its telemetry, which tells of every import over the network.

    OpenVINO does without that package where it is absent.
    """
    name = "openvino_telemetry"
    before = sys.modules.get(name)
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        return importlib.import_module("openvino")
    finally:
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before


@cache
def _core() -> Any:
    """The one core of this process, which never goes.

    Each sets a stack for signals and, as it goes, puts back the one it found, which may have gone
    before it: the next signal then ends the process.
    """
    return _openvino().Core()


def _converted(module: nn.Module, example: tuple[Tensor, ...]) -> Any:
    """Return OpenVINO's model of a torch module, with weights of its own.

    Shared ones would have to outlive it, whatever the garbage collector meets first.

    By the parts of ``openvino.convert_model``, which reports where ``_openvino`` came too late.
    """
    from openvino.frontend import FrontEndManager  # noqa: PLC0415 - optional
    from openvino.frontend.pytorch.ts_decoder import (  # noqa: PLC0415 - optional
        TorchScriptPythonDecoder,
    )

    frontend = FrontEndManager().load_by_framework("pytorch")
    decoder = TorchScriptPythonDecoder(module, example_input=example, shared_memory=False)
    return frontend.convert(frontend.load(decoder))


@torch.no_grad()
def keep_openvino(
    model: nn.Module, examples: Sequence[dict[str, Tensor]], *, in_bf16: bool = False
) -> None:
    """Compile a model, for ``forward_logits`` without gradients.

    Args:
        model: In evaluation mode, fp32, on the CPU; gives (B, 1) logits.
        examples: Model inputs of at least two shapes, with masks: the first is traced, and the
            scores of all are compared with those of torch.
        in_bf16: Let OpenVINO compute in bf16.

    Raises:
        ArgumentError: OpenVINO is not installed.
        ModelError: It does not take the model, or gives other scores.
    """
    try:
        _openvino()
    except ImportError:
        raise ArgumentError(
            "backend is 'openvino' and openvino is not installed - it is an extra - "
            "pip install '.[openvino]' in a clone of this repository, or leave the backend out"
        ) from None
    expected = [model(**inputs).logits for inputs in examples]
    layers = layers_below_first_token(model)
    shortcut = nullcontext() if layers is None else last_layer_at_first_token(layers)
    try:
        with shortcut, _quiet():
            compiled = _Compiled(model, examples[0], "bf16" if in_bf16 else "f32")
            found = [compiled(inputs) for inputs in examples]
    except Exception as error:  # tracing and each part of OpenVINO have exceptions of their own
        raise ModelError(
            f"OpenVINO does not take {type(model).__name__} ({one_line(error)[:200]}) - it runs "
            "models that torch can trace - leave the backend out"
        ) from error
    limit = _AGREES_IN_BF16 if in_bf16 else _AGREES
    for own, exact in zip(found, expected, strict=True):
        if own.shape != exact.shape or not torch.allclose(own, exact, rtol=limit, atol=limit):
            raise ModelError(
                f"OpenVINO gives other scores than torch for {type(model).__name__} - its forward "
                "depends on more than tracing sees - leave the backend out"
            )
    _kept[model] = compiled


def has_openvino(model: nn.Module) -> bool:
    """Whether forwards without gradients run in OpenVINO."""
    return model in _kept and not model.training and not torch.is_grad_enabled()


def openvino_logits(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """Return the (B, 1) logits of a model that ``keep_openvino`` has compiled; by turns."""
    with turn(model):
        return _kept[model](inputs)


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside, tracing does not warn of what the comparison with torch would find."""
    logger = logging.getLogger("transformers")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
