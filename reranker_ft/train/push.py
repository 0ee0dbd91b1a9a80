"""Put what a run has written on the Hub, with transformers' flags: ``--push_to_hub True``."""

from __future__ import annotations

import logging
from pathlib import Path

from huggingface_hub import HfApi
from transformers import Trainer

from reranker_ft.errors import RerankerError, one_line
from reranker_ft.train.output_folder import CHOICE_REPORT, FINE_TUNED, HELD_OUT, KEPT

logger = logging.getLogger(__name__)

# Steps on the way, and the user's own examples.
_LEFT_OUT = ["checkpoint-*/*", f"{FINE_TUNED}/*", HELD_OUT, KEPT, f"{CHOICE_REPORT}/*"]


def push(trainer: Trainer, output: Path) -> None:
    """Upload the model in the output folder, which with ``--keep`` is the chosen mix.

    Raises:
        RerankerError: The Hub refused, or the connection broke; the folder is as it was.
    """
    if not (output / "README.md").exists():
        trainer.create_model_card()
    repository = trainer.hub_model_id
    try:
        HfApi(token=trainer.args.hub_token).upload_folder(
            repo_id=repository,
            folder_path=output,
            commit_message="Add the model",
            ignore_patterns=_LEFT_OUT,
        )
    except Exception as error:  # its client raises what its HTTP library does
        raise RerankerError(
            f"{output} is complete and could not be pushed to {repository} ({one_line(error)}) - "
            f"mend that, and push it: hf upload {repository} {output}"
        ) from error
    logger.info("pushed: %s", repository)
