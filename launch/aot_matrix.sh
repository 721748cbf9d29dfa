#!/usr/bin/env bash
# The table of launch/aot.md: `plan` of every size on every topology, one JSON line each, one libtpu process at a time (hours on two cores).
#   bash launch/aot_matrix.sh OUT.jsonl [SIZES] [TOPOLOGIES]
# What OUT.jsonl already holds is not repeated. A cell without a plan is an error, unless libtpu's compiler is known to abort on it.
# `python -m videomae_jax plan --table=OUT.jsonl` prints the table.
set -uo pipefail
aborts='22b 2xv5p-512' # with libtpu 0.0.42
status=0
cd "$(dirname "$0")/.."
out=${1:?OUT.jsonl is missing}
python=${VIDEOMAE_PYTHON:-.venv/bin/python}
touch "$out"
for size in ${2:-b g s l h 4b 22b}; do
  for topology in ${3:-v5e-256 v5p-512 v6e-256 tpu7x-512 2xv5p-512 h100x512}; do
    case "$size" in 4b | 22b) config=configs/scaling/vit_$size.py name=videomae_v2_${size^^} ;; g) config=configs/pretrain/vit_g.py name=videomae_v2_g ;;
      *) config=configs/pretrain/vit_$size.py name=videomae_v2_${size^^} ;; esac
    grep -q "\"topology\": \"$topology\", \"config\": \"$name\"" "$out" && continue
    echo "$name on $topology" >&2
    line=$("$python" -m videomae_jax plan --config="$config" --topology="$topology" 2>"$out.error" | tail -n 1)
    code=$?
    if [[ $line == \{* ]]; then
      printf '%s\n' "$line" >>"$out"
      [ "$size $topology" != "$aborts" ] || echo "$name on $topology compiles with this libtpu: it is no expected abort any more" >&2
    elif [ "$size $topology" = "$aborts" ] && [ $code -eq 134 ]; then
      echo "no plan of $name on $topology: libtpu's compiler aborts (seen with 0.0.42), as expected" >&2
    else
      echo "no plan of $name on $topology (code $code): $(tail -n 1 "$out.error")" >&2
      status=1
    fi
  done
done
rm -f "$out.error"
exit $status
