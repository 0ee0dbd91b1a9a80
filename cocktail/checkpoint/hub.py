"""Fetch a checkpoint from the Hugging Face Hub through its own library: cache, token, offline."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path

from cocktail.checkpoint.weight_files import ADAPTER_CONFIG, ADAPTER_FILES, SHARDS, SIDE_TENSORS
from cocktail.errors import CheckpointError

COMPANIONS = (
    "*.json", "*.txt", "*.model", "*.spm", "*.codes", "*.tiktoken", "*.jinja", "*.py", "README.md",
    "LICENSE*", "NOTICE*",
)  # fmt: skip
NESTED_COMPANIONS = ("*/config.json", "*/*.jinja", "*/*.py")
_IDENTIFIER = re.compile(r"(?P<repo>[\w.-]+(/[\w.-]+)?)(@(?P<revision>[\w./-]+))?")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def parse_identifier(reference: str) -> tuple[str, str | None] | None:
    """Split ``org/name@revision``; ``None`` if ``reference`` has another form."""
    match = _IDENTIFIER.fullmatch(reference)
    if match is None or match["repo"].startswith("."):
        return None
    return match["repo"], match["revision"]


def fetch(repo: str, revision: str | None) -> Path:
    """Download the files that a mix needs into the Hub's cache.

    Safetensors are preferred; other formats of the same weights are not downloaded.

    Returns:
        The snapshot folder, whose name is the commit.

    Raises:
        CheckpointError: no such model, no access, or no connection and nothing in the cache.
    """
    from huggingface_hub import HfApi, snapshot_download  # noqa: PLC0415
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError  # noqa: PLC0415

    name = repo if revision is None else f"{repo}@{revision}"
    try:
        try:
            siblings = HfApi().model_info(repo, revision=revision).siblings
        except (HfHubHTTPError, ValueError):
            raise
        except Exception:  # no connection: each HTTP library that the client used has its own types
            return Path(snapshot_download(repo, revision=revision, local_files_only=True))
        wanted = needed_files([sibling.rfilename for sibling in siblings or ()])
        return Path(snapshot_download(repo, revision=revision, allow_patterns=wanted))
    except LocalEntryNotFoundError:
        raise CheckpointError(
            f"{name}: no such folder here, and the Hub's cache does not hold it - a model is a "
            "local folder or a Hub id org/name[@revision] - check the path, or go online once"
        ) from None
    except (HfHubHTTPError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise CheckpointError(
            f"{name}: the Hub refused ({reason}) - check the id and the revision, and log in with "
            "`hf auth login` if the model is gated or private"
        ) from None
    except Exception as error:  # the connection or the disk failed during the download
        raise CheckpointError(
            f"{name}: downloading stopped ({type(error).__name__}: {error}) - what has arrived is "
            "kept - run again to fetch the rest"
        ) from None


def needed_files(files: list[str]) -> list[str]:
    """Choose the files that a mix reads: one format of the weights, and the companions."""
    wanted = {file for file in files if file in SIDE_TENSORS or _is_companion(file)}
    for folder in {Path(file).parent for file in files}:
        if folder != Path() and f"{folder}/config.json" not in files:
            continue
        names = [file for file in files if Path(file).parent == folder]
        # Older sentence-transformers models keep the tokenizer beside the transformer.
        wanted.update(name for name in names if _is_companion(Path(name).name))
        for pattern in SHARDS:
            weights = [file for file in names if pattern.fullmatch(Path(file).name)]
            if weights:
                wanted.update(weights)
                break
    if ADAPTER_CONFIG in files:
        wanted.update([file for file in ADAPTER_FILES if file in files][:1])
    return sorted(wanted)


def _is_companion(file: str) -> bool:
    patterns = COMPANIONS if "/" not in file else NESTED_COMPANIONS
    return any(fnmatch(file, pattern) for pattern in patterns)


def hub_digests(folder: Path) -> dict[str, str]:
    """The sha256 digests that the Hub's cache knows for a snapshot's files, without reading them.

    The cache names the blob of every large file after its sha256, and links to it.
    """
    digests = {}
    for link in sorted(folder.rglob("*")):
        if link.is_symlink() and _SHA256.fullmatch(link.resolve().name):
            digests[link.relative_to(folder).as_posix()] = link.resolve().name
    return digests
