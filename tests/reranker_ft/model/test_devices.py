"""Devices as arguments name them."""

import pytest
import torch

from reranker_ft.errors import ArgumentError
from reranker_ft.model.devices import parse_devices


def test_devices_are_read_as_flagreranker_reads_them(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert parse_devices("cpu") == [torch.device("cpu")]
    assert parse_devices(1) == parse_devices("1") == parse_devices(["cuda:1"])
    assert parse_devices([0, 2]) == [torch.device("cuda:0"), torch.device("cuda:2")]
    for wrong, found in [
        ("gpu0", "unknown"),
        (3, "shows 3"),
        ([], "empty"),
        ("meta", "'meta' does not work here"),
        (["cpu", "xpu:7"], "'xpu:7' does not work here"),
    ]:
        with pytest.raises(ArgumentError, match=found):
            parse_devices(wrong)
