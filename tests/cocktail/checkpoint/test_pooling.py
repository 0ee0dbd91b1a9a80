"""How a sentence-transformers model pools, from the config of its module."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cocktail.checkpoint.pooling import pooling_mode
from cocktail.checkpoint.resolve import resolve
from cocktail.errors import CheckpointError
from tests.cocktail.checkpoints import Save, weights


def with_pooling(folder: Path, config: dict[str, Any] | None) -> Path:
    modules = [
        {"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    if config is not None:
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("config", "mode"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode_max_tokens": True, "pooling_mode_cls_token": True}, "cls+max"),
        ({"pooling_mode_lasttoken": True}, "lasttoken"),
        ({"pooling_mode": "mean"}, "mean"),
    ],
)
def test_modes(save: Save, config: dict[str, Any], mode: str) -> None:
    assert pooling_mode(resolve(with_pooling(save("a", weights(0)), config))) == mode


def test_a_model_without_modules_pools_in_no_way(save: Save) -> None:
    assert pooling_mode(resolve(save("a", weights(0)))) is None


def test_a_module_without_its_config_is_refused(save: Save) -> None:
    with pytest.raises(CheckpointError, match=r"1_Pooling: has no config\.json"):
        pooling_mode(resolve(with_pooling(save("a", weights(0)), None)))
