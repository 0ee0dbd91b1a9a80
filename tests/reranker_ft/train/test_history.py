"""The picture of a run: what it draws of a history."""

import json

import pytest

from reranker_ft.train.history import draw_history, write_history


def entry(step, **values):
    return {"step": step, "epoch": float(step), **values}


def measured(step, target, general=None):
    values = {f"eval_ndcg@10{end}": target + add for end, add in ENDS.items()}
    if general is not None:
        values |= {f"eval_retain_ndcg@10{end}": general + add for end, add in ENDS.items()}
    return entry(step, **values)


ENDS = {"": 0.0, "_low": -0.1, "_high": 0.1}


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """`drawn(history)`: (label, steps, values) of every line in the picture."""
    from matplotlib.figure import Figure

    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))

    def draw(history):
        draw_history(tmp_path / "history.png", history)
        return [
            (line.get_label(), list(line.get_xdata()), list(line.get_ydata()))
            for axes in figures[-1].axes
            for line in axes.get_lines()
        ]

    return draw


def test_loss_target_and_general_metric_are_drawn(drawn):
    history = [measured(0, 0.5, 0.9), entry(1, loss=2.0), entry(2, loss=1.0), measured(2, 0.7, 0.8)]
    assert drawn(history) == [
        ("training loss", [1, 2], [2.0, 1.0]),
        ("target NDCG@10", [0, 2], [0.5, 0.7]),
        ("general NDCG@10", [0, 2], [0.9, 0.8]),
    ]


def test_the_best_model_measured_after_training_does_not_hide_the_last_step(drawn):
    history = [entry(1, loss=1.0), measured(1, 0.8), measured(2, 0.6), measured(2, 0.8)]
    assert drawn(history)[1] == ("target NDCG@10", [1, 2], [0.8, 0.6])


def test_the_history_is_json_whatever_was_logged(tmp_path):
    write_history(tmp_path / "history.json", [entry(1, loss=1.0, grad_norm=float("nan"))])
    (read,) = json.loads((tmp_path / "history.json").read_text(), parse_constant=pytest.fail)
    assert read == entry(1, loss=1.0, grad_norm=None)


def test_without_evaluation_there_is_the_loss_alone(drawn):
    assert [label for label, _, _ in drawn([entry(1, loss=1.0)])] == ["training loss"]
