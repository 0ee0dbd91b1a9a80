"""Open any reference: a folder, a Hub id, an adapter on its base."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cocktail.checkpoint.folder import locate
from cocktail.checkpoint.model import Checkpoint
from cocktail.checkpoint.whole import open_whole
from cocktail.errors import CheckpointError
from cocktail.tensors.headers import is_text

if TYPE_CHECKING:
    pass


def resolve(reference: str | Path) -> Checkpoint:
    """Open a checkpoint, from the headers of its files alone.

    Args:
        reference: a local folder (one safetensors file, shards with an index, or
            ``pytorch_model*.bin``), a Hub id ``org/name[@revision]``, either of them with a PEFT
            adapter, or ``BASE+ADAPTER``.

    Raises:
        CheckpointError: there is no such folder or model, its files are damaged or contradict
            each other, or they hold tensors whose place in the model is not known; the adapter is
            of a type that cannot be added, or does not fit its base.
    """
    from cocktail.checkpoint.adapter.open import is_adapter, open_adapter, split_pair  # noqa: PLC0415 - a cycle

    text = str(reference)
    if not is_text(text):
        raise CheckpointError(
            f"{text!r}: is not valid UTF-8 - the mix records the paths of its models - "
            "rename the folder"
        )
    pair = split_pair(text)
    if pair is not None:
        return open_adapter(text, *pair)
    folder, commit = locate(text)
    if is_adapter(folder):
        return open_adapter(text, None, text)
    return open_whole(text, folder, commit)
