"""Commands and blocks of code of a Markdown page, and a shell that runs them in this process.

A process of its own for every command would spend its time on importing torch.
"""

from __future__ import annotations

import ast
import inspect
import io
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

PROGRAMS = ("cocktail", "reranker-ft", "torchrun", "python", "pip", "pytest", "bash", "cd", "for",
            "printf", "head")  # fmt: skip
_OUTPUTS = ("--output", "-o", "--output_dir", "--output-file", "--report", "--plot")
_WRITTEN = {"output_path", "output_dir", "output_file", "output"}


@dataclass(frozen=True)
class Block:
    """What stands on a page.

    Attributes:
        language: of the fence; ``sh`` for indented commands.
    """

    language: str
    text: str


def blocks(page: Path) -> Iterator[Block]:
    """Fenced blocks, and indented ones that begin with a command, in their order."""
    pattern = r"^```(\w+)\n((?:.*\n)*?)```|((?:^    .*\n)+)"
    for found in re.finditer(pattern, page.read_text(encoding="utf-8"), re.MULTILINE):
        language, fenced, indented = found.groups()
        if language is not None:
            yield Block({"bash": "sh"}.get(language, language), fenced)
            continue
        text = re.sub("^    ", "", indented, flags=re.MULTILINE)
        if _first_word(text) in PROGRAMS:
            yield Block("sh", text)


def commands(block: Block) -> Iterator[str]:
    """The commands of a block for the shell, each in one line, but a text that is read from it;
    without what they set in the environment."""
    if "<<'END'" in block.text:
        yield block.text
        return
    text = re.sub(r"\\\n\s*", "", block.text)
    # A loop is gone through once.
    text = re.sub(
        r"^for (\w+) in (\S+).*; do\n(.*?)^done\n",
        lambda loop: re.sub(rf"\${loop[1]}\b", loop[2], loop[3]),
        text,
        flags=re.MULTILINE | re.DOTALL,
    )
    for line in text.splitlines():
        if shlex.split(line, comments=True):
            yield re.sub(r"^(\w+=\S+ )+", "", line.strip())


def _first_word(text: str) -> str:
    words = [word for word in text.split() if not re.match(r"\w+=", word)]
    return words[0] if words else ""


class Shell:
    """Runs commands of this package's programs, and Python, in the current folder.

    What a command writes is removed before it runs, as a reader pastes into a folder of their own.
    """

    def __init__(self, names: dict[str, Any]) -> None:
        self.names = {"__name__": "__main__", **names}

    def python(self, code: str, arguments: tuple[str, ...] = ()) -> None:
        for path in _written_by(ast.parse(code)):
            _remove(path)
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()):
            patch.setattr(sys, "argv", ["-", *arguments])
            exec(compile(code, "<block>", "exec"), self.names)

    def run(self, command: str) -> None:
        folder, _, rest = command.rpartition(" && ")
        with pytest.MonkeyPatch.context() as patch:
            if folder.startswith("cd "):
                patch.chdir(folder[3:])
            here = re.match(r"python - (\S+) <<'END'\n(.*)END", rest, re.DOTALL)
            if here is not None:
                self.python(here[2], (_expanded(here[1].strip('"')),))
                return
            given = None
            if " | " in rest:
                printed, rest = rest.split(" | ")
                assert printed.startswith("printf ")
                given = shlex.split(printed)[1].encode().decode("unicode_escape")
            words = shlex.split(rest, comments=True)
            self._program([match for word in words for match in _globbed(word)], given)

    def _program(self, words: list[str], given: str | None) -> None:
        from cocktail.cli.main import main as cocktail
        from reranker_ft.cli.main import main as reranker_ft

        if words[0] == "torchrun":  # the guide's test starts it
            program = {"reranker_ft.run": ["reranker-ft", "train"], "cocktail": ["cocktail"]}
            place = words.index("-m")
            words = [*program[words[place + 1]], *words[place + 2 :]]
        for place, word in enumerate(words[:-1]):
            if word in _OUTPUTS:
                _remove(Path(words[place + 1]))
        main = {"cocktail": cocktail, "reranker-ft": reranker_ft}[words[0]]
        done = CliRunner().invoke(main, words[1:], input=given)
        assert done.exit_code == 0, f"{shlex.join(words)}\n{done.output}\n{done.exception!r}"


def _written_by(tree: ast.Module) -> Iterator[Path]:
    """The paths that calls of the packages write."""
    import cocktail
    import reranker_ft

    for call in ast.walk(tree):
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)):
            continue
        for package in (cocktail, reranker_ft):
            if call.func.id in package.__all__:
                keywords: Any = {word.arg: word.value for word in call.keywords if word.arg}
                signature = inspect.signature(getattr(package, call.func.id))
                bound = signature.bind(*call.args, **keywords).arguments
                for name in _WRITTEN & set(bound):
                    yield Path(ast.literal_eval(bound[name]))


def _expanded(word: str) -> str:
    return word.replace("$DATA", "DATA")


def _globbed(word: str) -> list[str]:
    word = _expanded(word)
    return sorted(map(str, Path().glob(word))) if "*" in word else [word]


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()
