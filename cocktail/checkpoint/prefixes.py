"""The prefix that a model's class puts before the names of its transformer's tensors."""

from __future__ import annotations

from collections.abc import Collection


def extra_prefix(names: Collection[str], others: Collection[str]) -> str:
    """The first component, with its dot, that ``names`` carry and ``others`` lack.

    ``bert.encoder.layer.0.output.dense`` against ``encoder.layer.0.output.dense`` gives ``bert.``.
    Empty if removing a first component does not make more names agree.
    """
    known = set(others)
    best, most = "", sum(name in known for name in names)
    for first in dict.fromkeys(name.partition(".")[0] for name in names):
        prefix = f"{first}."
        matches = sum(
            name.startswith(prefix) and name.removeprefix(prefix) in known for name in names
        )
        if matches > most:
            best, most = prefix, matches
    return best
