"""The group of commands: whatever goes wrong in one of them ends in one line on stderr."""

from __future__ import annotations

import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import click

from reranker_ft.errors import RerankerError, say, system_refusal

# What an optional dependency's absence means to someone who runs a command.
EXTRAS = {
    "accelerate": "train",
    "bm25s": "train",
    "peft": "train",
    "pytrec_eval": "train",
    "matplotlib": "plot",
    "mteb": "mteb",
}


PACKAGE = Path(__file__).parents[1]


class Terminated(KeyboardInterrupt):
    """SIGTERM: it ends a command as Ctrl-C does, so that no half-written output stays."""


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Inside, SIGTERM raises ``Terminated``, unless the caller handles it already."""

    def terminate(*_: object) -> None:
        raise Terminated

    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def _own_warnings_in_a_line() -> Iterator[None]:
    """Inside, print warnings of this package as errors are: without file and line of the code."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def said(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if Path(filename).is_relative_to(PACKAGE):
                say(str(message))
            else:
                show(message, category, filename, lineno, file, line)

        warnings.showwarning = said
        yield


class OneLineErrors(click.Group):
    """Ends on a wrong call with exit code 2, on what the package refuses with exit code 1."""

    # click overloads this by the mode, which is passed on.
    def main(  # type: ignore[override]
        self, args: Sequence[str] | None = None, *, standalone_mode: bool = True, **others: Any
    ) -> Any:
        """Run the command line; in standalone mode print the error that ends it, and exit."""
        if not standalone_mode:
            return super().main(args, standalone_mode=False, **others)
        try:
            code = super().main(args, standalone_mode=False, **others)
        except click.Abort:
            sys.exit(1)
        except click.ClickException as error:
            if type(error).__name__ == "NoArgsIsHelpError":  # from click 8.2 on
                error.show()
            else:
                say(_message(error))
            sys.exit(error.exit_code)
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with _sigterm_raises(), _own_warnings_in_a_line():
                return super().invoke(ctx)
        except RerankerError as error:
            raise click.ClickException(str(error)) from error
        except ModuleNotFoundError as error:
            extra = EXTRAS.get((error.name or "").split(".")[0])
            if extra is None:
                raise
            raise click.ClickException(
                f"{error.name} is not installed - this command needs it - "
                f"pip install '.[{extra}]' in a clone of this repository"
            ) from error
        except BrokenPipeError:
            raise  # the reader of our output has seen enough: click ends without a word
        except OSError as error:
            raise click.ClickException(system_refusal(error)) from error
        except Terminated:
            say("terminated")
            ctx.exit(128 + signal.SIGTERM)
        except KeyboardInterrupt:
            say("interrupted - nothing was written - run the same command to start anew")
            ctx.exit(130)


def _message(error: click.ClickException) -> str:
    message = error.format_message()
    context = getattr(error, "ctx", None)
    if context is None:
        return message
    return f"{message.rstrip('.')} - see {context.command_path} --help"
