"""What a checkpoint is: parts, tensors by name, and where they came from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cocktail.tensors.info import TensorInfo

if TYPE_CHECKING:
    from cocktail.system.temporary import View


MAIN = ""
"""The part of a checkpoint that is the transformers model itself."""


@dataclass(frozen=True)
class Part:
    """A set of tensors stored together: the model, a dense module, or a side tensor file.

    Attributes:
        folder: relative to the checkpoint, ``""`` for its top.
        file: the name of the file for side tensors (``sparse_linear.pt``), else ``None``.
        tensors: by name, in file order.
        aliases: names left out because the model ties them to another of ``tensors``.
    """

    folder: str
    file: str | None
    tensors: Mapping[str, TensorInfo]
    aliases: Mapping[str, str]


@dataclass(frozen=True)
class Adaption:
    """What an ingredient that is an adapter on its base was opened from.

    Attributes:
        base: the whole model underneath.
        adapter: the adapter's reference, with its commit if it comes from the Hub.
        folder: the adapter's folder.
        view: presents the files of both as those of one model.
        notes: what was decided, one line each.
    """

    base: Checkpoint
    adapter: str
    folder: Path
    view: View
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Checkpoint:
    """One ingredient.

    Attributes:
        reference: as the user gave it.
        folder: where its config, tokenizer and modules lie on disk.
        commit: the commit on the Hub, ``None`` for a local folder or an adapter.
        config: its ``config.json``.
        parts: the model under ``MAIN``, others under their path.
        adaption: set for an adapter on its base, whose tensors carry the adapter's changes.
        notes: what was decided when it was opened, one line each.
    """

    reference: str
    folder: Path
    commit: str | None
    config: Mapping[str, Any]
    parts: Mapping[str, Part]
    adaption: Adaption | None = None
    notes: tuple[str, ...] = ()

    @property
    def pinned(self) -> str:
        """A reference that opens the same files again, with the commits of what is on the Hub."""
        if self.adaption is not None:
            return f"{self.adaption.base.pinned}+{self.adaption.adapter}"
        return with_commit(self.reference, self.commit)

    @property
    def origins(self) -> dict[str, Path]:
        """The folders that it was read from, by reference."""
        if self.adaption is None:
            return {self.reference: self.folder}
        return {**self.adaption.base.origins, self.adaption.adapter: self.adaption.folder}

    @property
    def main_folder(self) -> Path:
        """Where ``config.json`` and the model's weights lie."""
        return self.folder / self.parts[MAIN].folder

    def __iter__(self) -> Iterator[tuple[str, TensorInfo]]:
        """All tensors, each with a key that is unique across the parts."""
        for path, part in self.parts.items():
            for name, info in part.tensors.items():
                yield tensor_key(path, name), info


def tensor_key(part: str, name: str) -> str:
    """The name of a tensor in messages and digests; outside the main part it carries a path."""
    return name if part == MAIN else f"{part}:{name}"


def with_commit(reference: str, commit: str | None) -> str:
    """The reference with the commit in place of its revision."""
    return reference if commit is None else f"{reference.partition('@')[0]}@{commit}"
