"""The notebook runs from its first cell to its last, and its results show themselves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "examples" / "notebook.ipynb"

# As a kernel does: one namespace, and the last expression of a cell is shown.
KERNEL = """
import ast, json, sys
namespace = {"__name__": "__main__"}
shown = []
for cell in json.load(open(sys.argv[1], encoding="utf-8"))["cells"]:
    if cell["cell_type"] != "code":
        continue
    body = ast.parse("".join(cell["source"])).body
    last = body.pop() if isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), cell["id"], "exec"), namespace)
    if last is not None:
        value = eval(compile(ast.Expression(last.value), cell["id"], "eval"), namespace)
        if hasattr(type(value), "_repr_html_"):
            shown.append([type(value).__name__, value._repr_html_()])
print(json.dumps(shown))
"""


def test_the_notebook_runs(tmp_path: Path) -> None:
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", KERNEL, NOTEBOOK], cwd=tmp_path, env=environment,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    shown = json.loads(done.stdout.splitlines()[-1])
    names = [name for name, _ in shown]
    assert names[0] == "CheckReport"
    for name in ("TrainingResult", "Comparison", "SearchResult", "Verification", "Calibration"):
        assert name in names
    assert all(html.startswith("<table>") for _, html in shown)


def test_the_notebook_is_kept_without_outputs() -> None:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    for cell in notebook["cells"]:
        assert cell["cell_type"] in ("code", "markdown")
        assert not cell.get("outputs")
