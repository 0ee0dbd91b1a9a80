"""Recompute the digests of a mixed model and of what went into it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from cocktail.checkpoint.folder import local_folder
from cocktail.checkpoint.model import Checkpoint, with_commit
from cocktail.checkpoint.resolve import resolve
from cocktail.errors import CheckpointError
from cocktail.mix.digests import checkpoint_digest
from cocktail.system.notebook import html_table
from cocktail.system.progress import byte_progress
from cocktail.write.provenance import read_provenance


@dataclass(frozen=True)
class Verdict:
    """The result of recomputing one model's digest.

    Attributes:
        model: the output folder, or the ingredient's reference.
        role: ``output`` or ``ingredient``.
        state: ``same``, ``different``, or ``unknown`` with the reason in ``detail``.
    """

    model: str
    role: str
    state: Literal["same", "different", "unknown"]
    detail: str = ""


@dataclass(frozen=True)
class Verification:
    """The verdicts on a mix and its ingredients, the mix first."""

    verdicts: tuple[Verdict, ...]

    @property
    def verified(self) -> bool:
        """Whether nothing that could be read is different."""
        return all(verdict.state != "different" for verdict in self.verdicts)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"verified": self.verified, "verdicts": [asdict(each) for each in self.verdicts]}

    def _repr_html_(self) -> str:
        rows = [(each.model, each.role, each.state, each.detail) for each in self.verdicts]
        return html_table([("model", "role", "state", "detail"), *rows])


def verify_mix(folder: str | Path, *, progress: bool = True) -> Verification:
    """Recompute the digests of a mix and of its ingredients; what ``cocktail verify`` does.

    Args:
        folder: that ``cocktail mix`` or a search wrote.
        progress: show how far it is, on stderr.

    Raises:
        CheckpointError: the folder is not a mix, or its own weights cannot be read.
    """
    return Verification(tuple(verify(folder, progress=progress)))


def verify(folder: str | Path, *, progress: bool = True) -> list[Verdict]:
    """Compare a mix and its ingredients with the digests in its ``cocktail.json``.

    Returns:
        The output first, then each ingredient; one that is no longer here, or that had weight zero
        and was never read, is ``unknown``.

    Raises:
        CheckpointError: the folder is not a mix, or its own weights cannot be read.
    """
    folder = Path(folder)
    record = read_provenance(folder)
    expected = str(record["output"]["digest"])
    verdicts = [_verdict(str(folder), "output", resolve(folder), expected, (), progress)]
    for entry in record["ingredients"]:
        name, commit = str(entry["model"]), entry.get("commit")
        if entry["digest"] is None:
            verdicts.append(Verdict(name, "ingredient", "unknown", "weight 0: it was not read"))
            continue
        if commit is None and "opened" not in entry and local_folder(name) is None:
            # Not looked for on the Hub: a model of that name there is a different one.
            detail = f"no folder {name} here; relative paths start at the current folder"
            verdicts.append(Verdict(name, "ingredient", "unknown", detail))
            continue
        try:
            ingredient = resolve(entry.get("opened") or with_commit(name, commit))
        except CheckpointError as error:
            verdicts.append(Verdict(name, "ingredient", "unknown", str(error)))
            continue
        verdicts.append(
            _verdict(name, "ingredient", ingredient, entry["digest"], entry["left_out"], progress)
        )
    return verdicts


def _verdict(
    name: str,
    role: str,
    checkpoint: Checkpoint,
    expected: str,
    left_out: Iterable[str],
    progress: bool,
) -> Verdict:
    total = sum(info.nbytes for _, info in checkpoint)
    with byte_progress(total, f"reading {name}", shown=progress) as advance:
        digest = checkpoint_digest(checkpoint, left_out, advance)
    if digest == expected:
        return Verdict(name, role, "same")
    return Verdict(name, role, "different", f"digest {digest}, but {expected} was recorded")
