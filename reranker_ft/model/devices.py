"""Parse devices as they are named in arguments."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from reranker_ft.errors import ArgumentError

Devices = str | int | Sequence[str] | Sequence[int] | None


def parse_devices(devices: Devices) -> list[torch.device]:
    """Return the devices that an argument of FlagReranker means.

    ``None`` takes all GPUs, else MPS, else the CPU.

    Raises:
        ArgumentError: Not a device's name or number, or one that this machine does not have.
    """
    if devices is None:
        if torch.cuda.is_available():
            return [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
        return [torch.device("mps" if torch.backends.mps.is_available() else "cpu")]
    names = [str(d) for d in ([devices] if isinstance(devices, (str, int)) else devices)]
    if not names:
        raise ArgumentError("devices is empty - at least one is needed - name one, or pass None")
    parsed = []
    for name in names:
        try:
            device = torch.device(f"cuda:{name}" if name.isdecimal() else name)
        except RuntimeError:
            raise ArgumentError(
                f"device {name!r} is unknown - a device is named like 'cuda:0' or 'cpu', or "
                "numbered - use one of these"
            ) from None
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise ArgumentError(
                f"device {name!r} does not exist - this machine shows {torch.cuda.device_count()} "
                "CUDA devices - choose one of them, or 'cpu'"
            )
        if device.type != "cuda" and not _computes(device):
            raise ArgumentError(
                f"device {name!r} does not work here - this machine or this torch does not have it "
                "- choose 'cpu', or a GPU that exists"
            )
        parsed.append(device)
    return parsed


def _computes(device: torch.device) -> bool:
    try:
        return torch.ones(1, device=device).item() == 1
    except Exception:  # each kind of device that is not there has a type of its own
        return False
