#!/usr/bin/env bash
# Progressive training: pretraining, then an intermediate labelled task, then the target; each stage starts from the run before.
#   bash launch/progressive.sh [--dry-run] [--direct] RUNS [-- WORDS OF EVERY STAGE...]
# RUNS/pretrain, RUNS/intermediate and RUNS/target are the run directories. The same command goes on where it was stopped: a
# finished stage is passed over (unless its words have --extend or --fork), a stopped one resumes, and its exit code
# (75 after SIGTERM) is that of this script. --direct also trains the target without the stage between, in RUNS/direct. --dry-run
# prints flags and commands and lets each compile a step.
#
# PRETRAIN, INTERMEDIATE, TARGET and DIRECT hold the words of `train` for each stage, split at blanks; LAUNCH what stands before
# every command. By default they are those of the embedded world: shapes from all labels in 400 steps, then from a tenth of them in 200; the direct
# way makes as many labelled steps, 600, on that tenth alone. Whoever gives TARGET gives DIRECT for --direct, too: a target may take over the head of the
# stage before, which pretraining has not; whether both ways have as many steps is then theirs to say (--config.total). V2's own scripts have not:
#   PRETRAIN="--config=configs/pretrain/vit_g.py --config.data.index=hybrid.parquet --config.data.__symbol__=videomae_jax.data.frame_folders.FrameClips"
#   INTERMEDIATE="--config=configs/finetune/k710_g.py --config.data.index=k710.parquet"
#   TARGET="--config=configs/finetune/k400_g_after_k710.py --config.data.index=k400.parquet"
#   DIRECT="--config=configs/finetune/k400_g.py --config.data.index=k400.parquet"
# Out of the domain, in as many steps each way:
#   INTERMEDIATE="--config=configs/finetune/shapes.py --config.data.label=motion --config.objective.head.classes=8 --config.data.limit=0"
#   TARGET="--config=configs/finetune/shapes.py --config.total=200"
#   DIRECT="--config=configs/finetune/shapes.py --config.total=600"
set -euo pipefail
source "$(dirname "$0")/options.sh"
python=${VIDEOMAE_PYTHON:-$here/.venv/bin/python}
shapes=--config=configs/finetune/shapes.py
direct='' runs='' common=()
while [ $# -gt 0 ]; do
  case "$1" in
    --) shift; common=("$@"); break ;;
    --dry-run) DRY_RUN=1 ;;
    --direct) direct=1 ;;
    -h | --help) usage_of "$0"; exit 0 ;;
    --*) fail "unknown option $1; allowed are --dry-run --direct, and words of every stage behind --" ;;
    *) [ -z "$runs" ] || fail "$1 comes after $runs; allowed is one folder of runs"; runs=$1 ;;
  esac
  shift
done
[ -n "$runs" ] || fail "the folder of runs is missing (see --help)"
[ -z "$direct" ] || [ -z "${TARGET:-}" ] || [ -n "${DIRECT:-}" ] ||
  fail "--direct with TARGET but without DIRECT, the words of the direct way: those of TARGET may take over a head, which pretraining has not (see --help)"
cd "$here"
source launch/xla_flags.sh
export_here
[ -z "$DRY_RUN" ] || show_exports
read -ra launch <<<"${LAUNCH:-}"

steps() { # steps FILE: the number that a summary or a recipe card gives; nothing where there is none
  [ ! -f "$1" ] || sed -n 's/^  "steps": *\([0-9]*\).*/\1/p' "$1"
}

finished() { # finished RUN WORD...: a run that was made longer and stopped has the summary of its earlier length; one of another total than the words' is another
  local done total word wanted=''
  done=$(steps "$1/summary.json") total=$(steps "$1/recipe_card.json")
  for word in "${@:2}"; do
    [[ ! $word =~ ^--config\.total=([0-9]+)$ ]] || wanted=${BASH_REMATCH[1]}
  done
  [ -n "$done" ] && [ "$done" = "$total" ] && [ "${wanted:-$total}" = "$total" ]
}

stage() { # stage NAME FROM "WORDS"
  local name=$1 from=$2 words command
  read -ra words <<<"$3"
  command=(${launch[@]+"${launch[@]}"} "$python" -m videomae_jax train "${words[@]}" --workdir="$runs/$name")
  [ -z "$from" ] || command+=("--config.objective.pretrained=$runs/$from")
  command+=(${common[@]+"${common[@]}"})
  if [ -n "$DRY_RUN" ]; then
    quoted "${command[@]}"
    [ -n "$absent" ] || "${command[@]}" --dry-run
  elif [[ ! " ${command[*]} " =~ " "--(extend|fork)" " ]] && finished "$runs/$name" "${command[@]}"; then
    echo "$name: finished before at step $(steps "$runs/$name/summary.json"), in $runs/$name" >&2
  else
    echo "$name: $(quoted "${command[@]}")" >&2
    "${command[@]}" || { code=$?; echo "$name ended with $code; the same command of this script goes on" >&2; exit $code; }
  fi
}

absent=''
if [ -z "${PRETRAIN:-}" ] && [ ! -f data/shapes/index.parquet ]; then
  synthesize=("$python" -m videomae_jax synthesize data/shapes)
  if [ -n "$DRY_RUN" ]; then
    quoted "${synthesize[@]}"
    echo "data/shapes is not there yet, so no step is compiled" >&2
    absent=1
  else
    "${synthesize[@]}"
  fi
fi
stage pretrain "" "${PRETRAIN:---config=configs/smoke.py}"
stage intermediate pretrain "${INTERMEDIATE:-$shapes --config.data.limit=0}"
stage target intermediate "${TARGET:-$shapes --config.objective.start=model --config.total=200}"
[ -z "$direct" ] || stage direct pretrain "${DIRECT:-$shapes --config.total=600}"
