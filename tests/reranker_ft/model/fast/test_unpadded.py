"""Sequences end to end in one row, without their padding."""

import torch

from reranker_ft.model.fast.unpadded import Row


def test_a_row_holds_the_tokens_of_a_padded_batch_in_order():
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 0], [1, 0, 0, 0]])
    row = Row.of({"input_ids": torch.ones_like(mask), "attention_mask": mask})
    assert row.kept.tolist() == [0, 1, 2, 4, 5, 6, 8]
    assert row.starts.tolist() == [0, 3, 6]
    assert row.runs == [(2, 3), (1, 1)]
    states = torch.arange(12.0).view(3, 4, 1)
    assert row.pack(states).flatten().tolist() == [0, 1, 2, 4, 5, 6, 8]


def test_without_a_mask_all_positions_are_tokens():
    row = Row.of({"input_ids": torch.ones(2, 3, dtype=torch.long)})
    assert row.kept.tolist() == list(range(6))
    assert row.runs == [(2, 3)]


def test_padding_on_the_left_makes_no_row():
    mask = torch.tensor([[0, 1], [1, 1]])
    assert Row.of({"input_ids": torch.ones_like(mask), "attention_mask": mask}) is None
