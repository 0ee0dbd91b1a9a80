"""The files beside the weights: which of them go into the mix."""

from __future__ import annotations

import json
from fnmatch import fnmatch
from pathlib import Path

from cocktail.checkpoint.model import Checkpoint
from cocktail.checkpoint.weight_files import (
    ADAPTER_CONFIG,
    INDEX,
    TRAINER_FILES,
    TRAINER_FOLDERS,
    is_trainers,
)
from cocktail.errors import listed

_AT_TOP = (
    "*.json", "vocab*", "merges.txt", "*.txt", "*.model", "*.spm", "*.codes", "*.tiktoken",
    "*.jinja", "*.py", "LICENSE*", "NOTICE*",
)  # fmt: skip
_TOKENIZER = (
    "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "*.model",
    "*.spm", "*.codes", "*.tiktoken", "chat_template*",
)  # fmt: skip
_IN_MODULES = ("*.json", "*.txt", "*.jinja", "*.py", "*.model", "*.spm", "*.codes")
# Shards that are not written, and records of how that model, not the mix, was made.
_NOT_COPIED = (f"*{INDEX}", ADAPTER_CONFIG, "cocktail.json", "requirements.txt", *TRAINER_FILES)


def companion_files(donor: Checkpoint, tokenizer: Path | None = None) -> dict[str, Path]:
    """Find config, tokenizer, chat template, custom code, licence and module settings.

    Args:
        tokenizer: the folder to take the tokenizer's files from, if not the donor's.

    Returns:
        Where each file lies, by its path in the output, sorted. The model card is not among them:
        the mix gets its own.
    """
    found = {name: donor.folder / name for name in companions_in(donor.folder)}
    if tokenizer is not None:
        place = donor.main_folder.relative_to(donor.folder)
        found = {name: path for name, path in found.items() if not is_tokenizers(path)}
        for path in tokenizer.iterdir():
            if _is_wanted(path, _TOKENIZER):
                found[(place / path.name).as_posix()] = path
    return dict(sorted(found.items()))


def is_tokenizers(path: Path) -> bool:
    """Whether a file belongs to a tokenizer."""
    return any(fnmatch(path.name, pattern) for pattern in _TOKENIZER)


def companions_in(folder: Path) -> list[str]:
    """Relative paths of the companion files in a folder, which need not hold a whole model."""
    found = [path.name for path in folder.iterdir() if _is_wanted(path, _AT_TOP)]
    for module in _module_folders(folder):
        found += [
            path.relative_to(folder).as_posix()
            for path in (folder / module).rglob("*")
            if _is_wanted(path, _IN_MODULES)
        ]
    templates = folder / "additional_chat_templates"
    if templates.is_dir():
        found += [f"{templates.name}/{path.name}" for path in templates.glob("*.jinja")]
    # Custom code may be a package of its own.
    found += [
        path.relative_to(folder).as_posix()
        for package in folder.glob("*/__init__.py")
        for path in package.parent.rglob("*.py")
    ]
    return sorted(set(found))


def left_behind(checkpoint: Checkpoint) -> list[str]:
    """One line naming the files in its folders that do not go into the mix."""
    # A module may consist of no more than its name in modules.json and an empty folder.
    paths = [*companion_files(checkpoint), *_module_folders(checkpoint.folder)]
    taken = {Path(path).parts[0] for path in paths}
    used = {info.file.name for _, info in checkpoint} | {"README.md", "cocktail.json"}
    hidden = (".", "adapter_") if checkpoint.adaption else "."
    others = sorted(
        {
            path.name + ("/" if path.is_dir() else "")
            for folder in checkpoint.origins.values()
            for path in folder.iterdir()
            if path.name not in taken
            and path.name not in used
            and not path.name.startswith(hidden)
            and not path.name.endswith(INDEX)
            and not _is_of_training(path)
        }
    )
    return [f"not part of the mix, left behind: {listed(others, 8)}"] if others else []


def _is_of_training(path: Path) -> bool:
    patterns = TRAINER_FOLDERS if path.is_dir() else TRAINER_FILES
    return is_trainers(path.name) or any(fnmatch(path.name, pattern) for pattern in patterns)


def _is_wanted(path: Path, patterns: tuple[str, ...]) -> bool:
    return (
        path.is_file()
        and any(fnmatch(path.name, pattern) for pattern in patterns)
        and not any(fnmatch(path.name, pattern) for pattern in _NOT_COPIED)
        and not path.name.startswith(".")
    )


def _module_folders(folder: Path) -> list[str]:
    """The sub-folders that ``modules.json`` names; it was checked when the folder was opened."""
    path = folder / "modules.json"
    if not path.is_file():
        return []
    return [m["path"] for m in json.loads(path.read_text(encoding="utf-8")) if m["path"]]
