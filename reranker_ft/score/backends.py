"""What computes a reranker's scores: torch on any device, or OpenVINO on a CPU."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from reranker_ft.errors import ArgumentError, ModelError
from reranker_ft.model.devices import Devices, parse_devices
from reranker_ft.model.forward import keep_openvino
from reranker_ft.model.precision import in_half_precision
from reranker_ft.model.readout import pair_encoder, readout_of
from reranker_ft.model.scoring import default_micro_batch_tokens, position_limit

Backend = Literal["torch", "openvino"]
OPENVINO = "openvino"
BACKENDS = ("torch", OPENVINO)
OPENVINO_MICRO_BATCH_TOKENS = 1024
# Of several shapes, one pair alone and padding among them.
_EXAMPLES = [
    [("what is a panda?", "hi"), ("what is a panda?", "The giant panda is a bear from China.")],
    [("who?", "nobody")],
    [("when was the bridge built?", word * 9) for word in ("in winter, ", "stone ", "")],
]


def devices_for(backend: str, devices: Devices) -> list[torch.device]:
    """Return the devices that an argument of FlagReranker means.

    Raises:
        ArgumentError: As ``parse_devices``; the backend is unknown or does not run there.
    """
    if backend not in BACKENDS:
        raise ArgumentError(
            f"backend is {backend!r} - there are {', '.join(BACKENDS)} - choose one of them"
        )
    if backend != OPENVINO:
        return parse_devices(devices)
    parsed = parse_devices("cpu" if devices is None else devices)
    for device in parsed:
        if device.type != "cpu":
            raise ArgumentError(
                f"backend is {backend!r} and the device {str(device)!r} - it runs on CPUs here - "
                "name the device 'cpu', or leave the backend out"
            )
    return parsed


def placed(
    model: nn.Module,
    tokenizer: Any,
    dtype: torch.dtype,
    devices: Sequence[torch.device],
    backend: str,
) -> list[nn.Module]:
    """Return one model per device, ready for ``score_encodings``; the first is the one given.

    Raises:
        ArgumentError, ModelError: As ``keep_openvino``, or a language model for OpenVINO.
    """
    half = dtype != torch.float32 and backend != OPENVINO
    place = in_half_precision if half else nn.Module.to
    weights = torch.float32 if backend == OPENVINO else dtype
    copies = [place(copy.deepcopy(model), device, weights) for device in devices[1:]]
    models = [place(model, devices[0], weights), *copies]
    if backend == OPENVINO:
        examples = _examples(model, tokenizer)
        for each in models:
            keep_openvino(each, examples, in_bf16=dtype == torch.bfloat16)
    return models


def _examples(model: nn.Module, tokenizer: Any) -> list[dict[str, Tensor]]:
    readout = readout_of(model)
    if readout is not None and readout.yes is not None:
        raise ModelError(
            f"{type(model).__name__} scores by its answer to a prompt - OpenVINO runs rerankers "
            "with a head here - leave the backend out, or convert the model (cocktail convert)"
        )
    encoder = pair_encoder(model, tokenizer, max_length=min(position_limit(model) or 64, 64))
    return [
        encodings.pad(range(len(encodings)), always_mask=True)
        for encodings in map(encoder, _EXAMPLES)
    ]


def default_tokens(backend: str, device: torch.device) -> int:
    """Return how many padded tokens one forward takes where the caller does not say."""
    return (
        OPENVINO_MICRO_BATCH_TOKENS if backend == OPENVINO else default_micro_batch_tokens(device)
    )
