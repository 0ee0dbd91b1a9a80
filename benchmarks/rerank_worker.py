"""One side of rerank.py or llm_train.py, run by its own interpreter; reports as JSON.

Needs nothing but the package of the side that it plays. The report is the last line printed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from functools import partial
from pathlib import Path

import torch
import transformers

GROUP = 8
QUERIES_PER_STEP = 4
MAX_LENGTH = 256
QUERY_LENGTH = 32  # FlagEmbedding's trainer splits the length in two; both halves add up to 256
LEARNING_RATE = 6e-5
REQUEST = 32
LLM_QUERIES_PER_STEP = 2
LLM_LEARNING_RATE = 2e-4
# The rest is every side's default: dropout 0.1, all linear layers but the output embedding.
LORA = {"use_lora": True, "lora_rank": 32, "lora_alpha": 64}

ON_GPU = torch.cuda.is_available()


class StepClock(transformers.TrainerCallback):
    """Seconds from the end of one step to the end of the next: data loading counts."""

    # One training run in a process.
    ends: list[float] = []  # noqa: RUF012
    processor_ends: list[float] = []  # noqa: RUF012
    losses: list[float] = []  # noqa: RUF012 - of each step, where a side is told to log them

    def on_step_end(self, args, state, control, **kwargs):
        if ON_GPU:
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())
        self.processor_ends.append(time.process_time())

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))


def training_arguments(output: Path, steps: int) -> dict[str, object]:
    """What all three Trainers are told alike."""
    return {
        "output_dir": str(output),
        "learning_rate": LEARNING_RATE,
        "per_device_train_batch_size": QUERIES_PER_STEP,
        "max_steps": steps,
        "dataloader_drop_last": True,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "seed": 42,
        "bf16": ON_GPU,
        "use_cpu": not ON_GPU,
        "disable_tqdm": True,
    }


def as_flags(arguments: dict[str, object]) -> list[str]:
    return [word for name, value in arguments.items() for word in (f"--{name}", str(value))]


def train_ours(model: Path, data: Path, output: Path, steps: int) -> None:
    from reranker_ft.train.flags import parse
    from reranker_ft.train.train import run

    flags = {
        "model_name_or_path": model,
        "train_data": data,
        "train_group_size": GROUP,
        "max_len": MAX_LENGTH,
        "overwrite_output_dir": True,
        **training_arguments(output, steps),
    }
    run(*parse(as_flags(flags)))


def train_flagembedding(model: Path, data: Path, output: Path, steps: int) -> None:
    """As `python -m FlagEmbedding.finetune.reranker.encoder_only.base` does with these flags."""
    from FlagEmbedding.finetune.reranker.encoder_only.base.__main__ import main

    flags = {
        "model_name_or_path": model,
        "train_data": data,
        "cache_path": output / "cache",
        "train_group_size": GROUP,
        "query_max_len": QUERY_LENGTH,
        "passage_max_len": MAX_LENGTH - QUERY_LENGTH,
        **training_arguments(output, steps),
    }
    sys.argv = ["finetune", *as_flags(flags)]
    main()


def llm_arguments(output: Path, steps: int) -> dict[str, object]:
    return {
        **training_arguments(output, steps),
        **LORA,
        "learning_rate": LLM_LEARNING_RATE,
        "per_device_train_batch_size": LLM_QUERIES_PER_STEP,
        "train_group_size": GROUP,
        "logging_strategy": "steps",
        "logging_steps": 1,
    }


def train_llm_ours(model: Path, data: Path, output: Path, steps: int) -> None:
    from reranker_ft.train.flags import parse
    from reranker_ft.train.train import run

    flags = {
        "model_type": "decoder",
        "model_name_or_path": model,
        "prompt_template": "bge-llm",
        "train_data": data,
        "max_len": MAX_LENGTH,
        "overwrite_output_dir": True,
        **llm_arguments(output, steps),
    }
    run(*parse(as_flags(flags)))


def train_llm_flagembedding(model: Path, data: Path, output: Path, steps: int) -> None:
    """As `python -m FlagEmbedding.finetune.reranker.decoder_only.base` does with these flags."""
    from FlagEmbedding.finetune.reranker.decoder_only.base.__main__ import main

    flags = {
        "model_type": "decoder",
        "model_name_or_path": model,
        "train_data": data,
        "cache_path": output / "cache",
        "query_max_len": QUERY_LENGTH,
        "passage_max_len": MAX_LENGTH - QUERY_LENGTH,
        # What its scorer puts before the texts.
        "query_instruction_for_rerank": "A: ",
        "passage_instruction_for_rerank": "B: ",
        **llm_arguments(output, steps),
    }
    sys.argv = ["finetune", *as_flags(flags)]
    main()


def train_sentence_transformers(model: Path, data: Path, output: Path, steps: int) -> None:
    from datasets import Dataset
    from sentence_transformers import CrossEncoder
    from sentence_transformers.cross_encoder import (
        CrossEncoderTrainer,
        CrossEncoderTrainingArguments,
        losses,
    )

    lines = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
    # The loss takes a softmax of the labels; 100 against 0 makes it one-hot, and ListNet then is
    # the cross-entropy over the group that the other two minimise.
    dataset = Dataset.from_dict(
        {
            "query": [line["query"] for line in lines],
            "docs": [line["pos"] + line["neg"] for line in lines],
            "labels": [[100.0] + [0.0] * (GROUP - 1) for _ in lines],
        }
    )
    encoder = CrossEncoder(str(model), num_labels=1, max_length=MAX_LENGTH, device=device())
    trainer = CrossEncoderTrainer(
        model=encoder,
        args=CrossEncoderTrainingArguments(**training_arguments(output, steps)),
        train_dataset=dataset,
        loss=losses.ListNetLoss(encoder, mini_batch_size=MINI_BATCH),
    )
    trainer.train()
    encoder.save_pretrained(str(output))


# On a CPU small forwards pad least; a GPU takes the step at once.
MINI_BATCH = -1 if ON_GPU else None


def scorer_ours(model: Path, **options):
    from reranker_ft.score.reranker import Reranker

    options = {"use_bf16": ON_GPU, **options}
    return Reranker(str(model), max_length=MAX_LENGTH, devices=device(), **options).compute_score


def scorer_flagembedding(model: Path):
    from FlagEmbedding import FlagReranker

    reranker = FlagReranker(str(model), max_length=MAX_LENGTH, devices=device())
    if ON_GPU:
        reranker.model.bfloat16()
    return reranker.compute_score


def scorer_sentence_transformers(model: Path, *, half: bool = ON_GPU):
    kwargs = {"dtype": torch.bfloat16} if half else {}
    return cross_encoder(model, 32, model_kwargs=kwargs)


def scorer_sentence_transformers_openvino(model: Path):
    # OpenVINO takes bf16 by itself where the processor has it; small batches suit its cache.
    return cross_encoder(model, 16, backend="openvino", model_kwargs={"export": True})


def cross_encoder(model: Path, batch_size: int, **options):
    from sentence_transformers import CrossEncoder

    encoder = CrossEncoder(str(model), max_length=MAX_LENGTH, device=device(), **options)
    # A sigmoid is its default; the others return the logit.
    identity = torch.nn.Identity()
    return lambda pairs: encoder.predict(
        pairs, batch_size=batch_size, activation_fn=identity, show_progress_bar=False
    ).tolist()


def device() -> str:
    return "cuda:0" if ON_GPU else "cpu"


def score(scorer, pairs: list[list[str]]) -> dict[str, object]:
    """Seconds for the pairs in requests of 32 and in one request, and the scores."""
    requests = [pairs[i : i + REQUEST] for i in range(0, len(pairs), REQUEST)]
    scorer(requests[0])
    seconds: dict[str, float] = {}
    cpu_seconds: dict[str, float] = {}
    for name, parts in ((f"requests of {REQUEST}", requests), ("one request", [pairs])):
        started, computed = time.perf_counter(), time.process_time()
        scores = [value for part in parts for value in scorer(part)]
        seconds[name] = time.perf_counter() - started
        cpu_seconds[name] = time.process_time() - computed
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "scores": scores}


TRAIN = {
    "ours": train_ours,
    "FlagEmbedding": train_flagembedding,
    "sentence-transformers": train_sentence_transformers,
}
TRAIN_LLM = {"ours": train_llm_ours, "FlagEmbedding": train_llm_flagembedding}
SCORERS = {
    "ours": scorer_ours,
    "FlagEmbedding": scorer_flagembedding,
    "sentence-transformers": scorer_sentence_transformers,
    "ours-bf16": partial(scorer_ours, use_bf16=True),
    "ours-openvino": partial(scorer_ours, backend="openvino"),
    "sentence-transformers-bf16": partial(scorer_sentence_transformers, half=True),
    "sentence-transformers-openvino": scorer_sentence_transformers_openvino,
}


def differences(ends: list[float]) -> list[float]:
    return [b - a for a, b in itertools.pairwise(ends)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("job", choices=["train", "train-llm", "score"])
    parser.add_argument("side", choices=SCORERS)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--steps", type=int)
    options = parser.parse_args()
    if options.job == "score":
        pairs = json.loads(options.data.read_text(encoding="utf-8"))
        report = score(SCORERS[options.side](options.model), pairs)
    else:
        # Every Trainer of the process gets the clock, whoever builds it.
        transformers.trainer.DEFAULT_CALLBACKS.append(StepClock)
        trains = TRAIN if options.job == "train" else TRAIN_LLM
        trains[options.side](options.model, options.data, options.output, options.steps)
        report = {
            "step_seconds": differences(StepClock.ends),
            "step_processor_seconds": differences(StepClock.processor_ends),
            "losses": StepClock.losses,
        }
    if ON_GPU:
        report["gpu_bytes"] = torch.cuda.max_memory_allocated()
    print("\n" + json.dumps(report))


if __name__ == "__main__":
    main()
