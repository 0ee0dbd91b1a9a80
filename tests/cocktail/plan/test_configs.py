"""Which differences of configs are refused, which are noted, and which a flag accepts."""

from __future__ import annotations

from typing import Any

import pytest

from cocktail.errors import PlanError
from cocktail.plan.configs import ConfigDifferences, compare_configs
from cocktail.plan.plan import build_plan
from cocktail.recipe.recipe import make_recipe
from tests.cocktail.checkpoints import Save, weights


def compared(ours: dict[str, Any], theirs: dict[str, Any], *accepted: str) -> ConfigDifferences:
    return compare_configs(["a", "b"], [ours, theirs], accepted, donor=1)


@pytest.mark.parametrize(
    "key",
    [
        "attn_pdrop", "resid_pdrop", "embd_pdrop", "encoder_layerdrop", "layerdrop", "init_std",
        "apply_spec_augment", "mask_time_prob", "mask_feature_length", "classifier_dropout",
        "label_smoothing", "router_jitter_noise", "ctc_loss_reduction", "aux_loss_coef",
        "initializer_cutoff_factor", "drop_path_rate", "transformers_version",
    ],
)  # fmt: skip
def test_what_training_alone_reads_says_nothing(key: str) -> None:
    assert compared({key: 0.1}, {key: 0.2}) == ConfigDifferences((), ())


@pytest.mark.parametrize(
    ("key", "switches"),
    [
        ("max_position_embeddings", {}),
        ("n_positions", {}),
        ("sliding_window", {"use_sliding_window": False}),
        ("max_window_layers", {"use_sliding_window": False}),
    ],
)
@pytest.mark.parametrize("deep", [False, True])
def test_lengths_and_what_is_switched_off_are_noted(
    key: str, switches: dict[str, Any], deep: bool
) -> None:
    ours, theirs = {key: 1, **switches}, {key: 2, **switches}
    if deep:
        ours, theirs = {"text_config": ours}, {"text_config": theirs}
    found = compared(ours, theirs)
    assert not found.problems
    assert "is 1 in a and 2 in b; the mix takes that of b" in found.notes[0]


def test_a_window_that_is_used_is_part_of_the_model() -> None:
    on = {"use_sliding_window": True}
    assert compared({"sliding_window": 1, **on}, {"sliding_window": 2, **on}).problems
    assert compared({"sliding_window": 1}, {"sliding_window": 2}).problems


def test_the_flag_that_the_message_names_accepts_a_difference(save: Save) -> None:
    models = [save("a", weights(0), hidden_act="gelu"), save("b", weights(1), hidden_act="relu")]
    with pytest.raises(PlanError, match="--accept-config hidden_act"):
        build_plan(make_recipe(models, (0.5, 0.5)))
    plan = build_plan(make_recipe(models, (0.5, 0.5), accept_config=["hidden_act"]))
    assert any("which was accepted" in note for note in plan.notes)
    assert "accept_config" in plan.recipe.to_yaml()
    deep = {"text_config": {"hidden_act": "a"}}, {"text_config": {"hidden_act": "b"}}
    assert "--accept-config text_config.hidden_act" in compared(*deep).problems[0]
    assert not compared(*deep, "text_config.hidden_act").problems
