"""Put a model on the Hub, once it is whole on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cocktail.checkpoint.hub import parse_identifier
from cocktail.errors import OutputError, RecipeError

# Of torch's training or of a search: no part of a model.
_LEFT_OUT = ["checkpoint-*/*", "*.jsonl"]


def check_push(repository: str) -> None:
    """Refuse before the long work what the Hub would refuse after it.

    Raises:
        RecipeError: the name is none of a repository, or the Hub does not know who is asking.
    """
    from huggingface_hub import HfApi  # noqa: PLC0415 - a tenth of a second

    if parse_identifier(repository) != (repository, None):
        raise RecipeError(
            f"push_to_hub is {repository!r} - a model on the Hub is named org/name - correct it"
        )
    try:
        HfApi().whoami()
    # Its client raises what its HTTP library does.
    except Exception as error:
        raise RecipeError(
            f"push_to_hub is {repository} and the Hub cannot be written to ({_one_line(error)}) - "
            "it needs a connection and a token that may write - log in (hf auth login), or leave "
            "it out"
        ) from None


def push(folder: Path, repository: str, *, private: bool = False) -> str:
    """Upload a model's folder as it is; the repository is made if there is none.

    Args:
        private: makes it so that only its owners see it, where it is new.

    Returns:
        Its address.

    Raises:
        OutputError: the Hub refused, or the connection broke; the folder is as it was.
    """
    from huggingface_hub import HfApi  # noqa: PLC0415 - a tenth of a second

    hub: Any = HfApi()
    try:
        made = hub.create_repo(repository, private=private or None, exist_ok=True)
        hub.upload_folder(
            repo_id=made.repo_id,
            folder_path=folder,
            commit_message="Add the model",
            ignore_patterns=_LEFT_OUT,
        )
    except Exception as error:
        raise OutputError(
            f"{folder} is complete and could not be pushed to {repository} ({_one_line(error)}) - "
            f"mend that, and push it: hf upload {repository} {folder}"
        ) from None
    return str(made)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
