"""``torchrun -m reranker_ft.run``: the command line of training."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from reranker_ft.errors import ArgumentError, RerankerError, say, system_refusal
from reranker_ft.progress import tell_start


def _process_index() -> int:
    """Return the number of this process, as torchrun counts them."""
    return int(os.environ.get("RANK", "0"))


def _log_to_stderr() -> None:
    """Show the package's notes and warnings, from the first process only."""
    package = logging.getLogger("reranker_ft")
    if not package.hasHandlers():
        package.setLevel(logging.INFO if _process_index() == 0 else logging.ERROR)
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        package.addHandler(handler)


def _leave_group() -> None:
    """End the threads that connect the processes: left alone, they sometimes abort the exit."""
    import torch.distributed as dist  # noqa: PLC0415

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def main(argv: list[str] | None = None) -> int:
    """Train as the flags say, and return the exit code.

    A ``RerankerError`` ends as one line on stderr, from the first process only: exit code 2 for
    arguments, 1 for data, models and what the system refuses (a full disk). So does Ctrl-C, with
    exit code 130.
    """
    _log_to_stderr()
    output: str | None = None
    try:
        _tell_start(sys.argv[1:] if argv is None else argv)
        # Seconds to import, in which Ctrl-C ends as it does later on.
        from reranker_ft.train.flags import parse  # noqa: PLC0415
        from reranker_ft.train.train import run  # noqa: PLC0415

        arguments = parse(argv)
        output = arguments[-1].output_dir
        run(*arguments)
        _leave_group()
    except RerankerError as error:
        return _refuse(str(error), 2 if isinstance(error, ArgumentError) else 1)
    except OSError as error:
        return _refuse(system_refusal(error), 1)
    except KeyboardInterrupt:
        return _refuse(f"interrupted{_way_on(output)}", 130)
    return 0


def _tell_start(argv: Sequence[str]) -> None:
    """Say what is trained on what, as the flags have it, which only transformers can parse in full.

    Nothing is said where the command will end at once: for its help, or without these flags.
    """
    asked = {flag: _value(argv, flag) for flag in ("model_name_or_path", "train_data")}
    if None not in asked.values() and not {"-h", "--help"} & set(argv):
        tell_start("training: {model_name_or_path} on {train_data}".format(**asked))


def _value(argv: Sequence[str], flag: str) -> str | None:
    """Return the first value of a flag, given as the next word or after an equals sign."""
    for word, following in pairwise([*argv, ""]):
        name, equals, value = word.partition("=")
        if name.startswith("--") and name[2:].replace("-", "_") == flag:
            return (value if equals else following) or None
    return None


def _refuse(line: str, code: int) -> int:
    if _process_index() == 0:
        say(line)
    return code


def _way_on(output: str | None) -> str:
    """Say how an interrupted run goes on: from a checkpoint, where it has saved one."""
    if output is None or not any(Path(output).glob("checkpoint-*")):
        return (
            " - no checkpoint was saved - run the same command to start anew, with --save_steps "
            "100 to have some to go on from"
        )
    return (
        f" - {output} holds checkpoints - add --resume_from_checkpoint True to the same command to "
        "go on from the last one"
    )


if __name__ == "__main__":
    sys.exit(main())
