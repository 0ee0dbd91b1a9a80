#!/usr/bin/env bash
# What each merge method makes of two fine-tunes: covid and overtuned, on their base, as
# fine_tunes.sh left them in OUT, compared on the target and on general questions.
#
#     bash benchmarks/merged_rerankers.sh DATA OUT [QUERIES]
#
# The density is 0.5 and every weight 0.5 for methods that have them; all else is left at its default.
# The methods that take one fine-tune merge covid with the base.
set -euo pipefail
data=$(realpath "$1") queries=${3:-100}
cd "$2"
mkdir -p merged
head -20 "$data/covidqa/dev.jsonl" > merged/examples.jsonl

merge() { # METHOD and arguments of cocktail mix
  [ -e "merged/$1" ] || cocktail mix --quiet --method "$1" --output "merged/$1" "${@:2}"
}

both="covid overtuned --weights 0.5 0.5"
merge linear $both
merge nuslerp $both
merge multislerp $both
merge karcher covid overtuned
merge slerp covid --base base --parameter t=0.5
merge nearswap covid --base base --parameter t=0.001
merge arcee_fusion covid --base base
merge task_arithmetic $both --base base
for method in ties dare_linear dare_ties della della_linear breadcrumbs breadcrumbs_ties; do
  merge $method $both --base base --parameter density=0.5
done
for method in model_stock sce ram ramplus_tl iso_c tsv_m consensus; do
  merge $method covid overtuned --base base
done
for method in fisher regmean; do
  merge $method covid overtuned --data merged/examples.jsonl
done
reranker-ft evaluate base covid overtuned $(find merged -mindepth 1 -maxdepth 1 -type d | sort) \
  --max_queries "$queries" --max_length 256 \
  --data "$data/covidqa/test.jsonl" --data "$data/xquad_en/test.jsonl" --json
