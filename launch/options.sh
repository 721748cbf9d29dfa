# Sourced by the launchers for other machines: options, --dry-run, grids.
#
#   bash launch/LAUNCHER.sh [--option=value ...] [--dry-run] -- train --config=FILE --workdir=DIR ...
#   bash launch/LAUNCHER.sh [--option=value ...] [--dry-run] --grid=configs/scaling/v2.py --root=/MOUNTED/runs [--topology=NAME] [-- --config.x=y ...]
#
# What stands behind -- is the command line of `python -m videomae_jax`. With --grid every cell that is not finished is
# submitted, one job a cell; the cells are printed first with what they cost, in chip-hours with --topology and else in EFLOP, and what stands behind --
# are more options of every cell, with which it has to be finished. With --topology each cell gets the mesh, micro-batches and recomputation that its
# chip-hours are of. --dry-run prints exactly what would run and runs nothing.

fail() {
  echo "error: $*" >&2
  exit 2
}

check_bash() { # check_bash MAJOR MINOR: ends the launcher in a bash that has no such arrays; macOS has 3.2
  [ "$1" -gt 4 ] || { [ "$1" -eq 4 ] && [ "$2" -ge 4 ]; } || fail "bash $1.$2; needed is 4.4 or newer (macOS: brew install bash)"
}
check_bash "${BASH_VERSINFO[0]}" "${BASH_VERSINFO[1]}"

here="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
COUNTS="nodes gpus cpus hosts slices chips num-nodes processes devices port init-timeout max-restarts" # options that are numbers
SWITCHES="spot keep follow" # options that are 1 or left out
DRY_RUN=
COMMAND=()
declare -A OPTION

usage_of() { sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p}' "$1" >&2; }

# parse_options FILE "required names" "name=default ..." ARGUMENTS...: fills OPTION and COMMAND.
parse_options() {
  local file=$1 required=$2 defaults=$3 word name
  shift 3
  for word in $required grid root topology $defaults; do OPTION[${word%%=*}]=$([[ $word == *=* ]] && echo "${word#*=}" || true); done
  while [ $# -gt 0 ]; do
    word=$1
    shift
    case "$word" in
      --) COMMAND=("$@"); break ;;
      --dry-run) DRY_RUN=1 ;;
      -h | --help) usage_of "$file"; exit 0 ;;
      --*=*)
        name=${word#--}
        name=${name%%=*}
        [ -n "${OPTION[$name]+known}" ] || fail "unknown option --$name; allowed are $(printf -- '--%s ' $(printf '%s\n' "${!OPTION[@]}" | sort))--dry-run"
        OPTION[$name]=${word#*=} ;;
      *) fail "$word is no option; options are --name=value, and the command of the run follows --" ;;
    esac
  done
  for name in $required; do [ -n "${OPTION[$name]}" ] || fail "--$name=VALUE is missing (see --help)"; done
  for name in $COUNTS; do
    [[ ${OPTION[$name]-1} =~ ^[1-9][0-9]*$ || $name=${OPTION[$name]-} =~ ^(max-restarts=0|port=|num-nodes=)$ ]] ||
      fail "--$name=${OPTION[$name]}; allowed are whole numbers of 1 and more"
  done
  for name in $SWITCHES; do [[ ${OPTION[$name]-} =~ ^1?$ ]] || fail "--$name=${OPTION[$name]}; allowed is 1, or leave it out"; done
  (source "$here/launch/xla_flags.sh" && flags_of "${OPTION[chip]:-}" >/dev/null) || exit 2
  if [ -n "${OPTION[grid]}" ]; then
    [[ ${COMMAND[0]---} == --* ]] || fail "--grid brings its own commands; nothing but options of its cells may follow --, which ${COMMAND[0]} is not"
    [ -n "${OPTION[root]}" ] || fail "--grid needs --root=DIR, below which every cell has its run directory"
  elif [ ${#COMMAND[@]} -eq 0 ]; then
    fail "no command; write it behind --, e.g. -- train --config=configs/pretrain/vit_b.py --workdir=runs/vit_b"
  fi
}

# taken MESSAGE: somebody runs under the name already. An error; a cell of a grid is passed over.
taken() {
  [ -n "${OPTION[grid]}" ] || fail "$1"
  echo "$1" >&2
}

# parse_mount: what --mount says, as MOUNT_KIND (bucket, nfs, or empty), MOUNT_FROM (the bucket's name, or HOST:/SHARE) and MOUNT_TO (the folder).
parse_mount() {
  local word=${OPTION[mount]} folder='(/[A-Za-z0-9_./-]+)'
  MOUNT_KIND= MOUNT_FROM= MOUNT_TO=
  [ -n "$word" ] || return 0
  if [[ $word =~ ^gs://([a-z0-9][a-z0-9._-]*)/?:$folder$ ]]; then
    MOUNT_KIND=bucket
  elif [[ $word != gs://* && $word =~ ^([A-Za-z0-9.-]+:/[A-Za-z0-9_./-]*):$folder$ ]]; then
    MOUNT_KIND=nfs
  else
    fail "--mount=$word; allowed are gs://BUCKET:/FOLDER and HOST:/SHARE:/FOLDER"
  fi
  MOUNT_FROM=${BASH_REMATCH[1]} MOUNT_TO=${BASH_REMATCH[2]}
}

# do_or_show COMMAND...: runs it, or prints it so that a shell reads back the same words.
do_or_show() {
  if [ -n "$DRY_RUN" ]; then quoted "$@"; else "$@"; fi
}

# quoted WORDS...: one line that a shell reads back as the same words.
quoted() {
  local word line=
  for word in "$@"; do
    [[ $word =~ ^[A-Za-z0-9_@%+=:,./~-]+$ ]] || word="'${word//\'/\'\\\'\'}'"
    line+="${line:+ }$word"
  done
  printf '%s\n' "$line"
}

# optional NAME...: "--name=value" of the options that have a value.
optional() {
  local name
  for name in "$@"; do [ -z "${OPTION[$name]}" ] || echo "--$name=${OPTION[$name]}"; done
}

# supervising: how launch/supervise.sh starts a command again, as often as --max-restarts allows. A start that only waited for the other hosts is a
# crash of a row.
supervising() { echo "CRASHES=$((OPTION[max-restarts] + 1)) STEADY=$((OPTION[init-timeout] + 600))"; }

# for_each_run FUNCTION...: calls it as FUNCTION... NAME COMMAND...: once, or for every unfinished cell of the grid.
for_each_run() {
  local function=("$@") base=${OPTION[name]:-run} line
  if [ -z "${OPTION[grid]}" ]; then
    "${function[@]}" "$base" "${COMMAND[@]}"
    return
  fi
  local python=${VIDEOMAE_PYTHON:-$here/.venv/bin/python} table planned=() others=() word value=
  for word in ${COMMAND[@]+"${COMMAND[@]}"}; do # fields of the config come back in the words of the cells
    if [[ -n $value || $word == --config.* ]]; then planned+=("$word"); else others+=("$word"); fi
    [[ -z $value && $word == --config.* && $word != *=* ]] && value=1 || value= # its value is the word behind it
  done
  [ -x "$(command -v "$python")" ] || python=python3
  table=$(cd "$here" && "$python" -m videomae_jax plan --grid="${OPTION[grid]}" --root="${OPTION[root]}" \
    ${OPTION[topology]:+--topology="${OPTION[topology]}"} ${planned[@]+"${planned[@]}"}) || exit $?
  grep '^#' <<<"$table" >&2
  while IFS=$'\t' read -r -u 3 cell command; do # not from standard input, which is that of the tools: some of them ask
    local words=()
    eval "words=($command)"
    "${function[@]}" "$base-$cell" "${words[@]}" ${others[@]+"${others[@]}"} 3<&-
  done 3< <(grep -v '^#' <<<"$table")
}

# remember CODE: the launcher ends with the first one other than 0, after the cells that follow.
FAILED=0
remember() { [ "$FAILED" -ne 0 ] || FAILED=$1; }

# apart FUNCTION NAME COMMAND...: submits a run by it, in a shell of its own: of a grid, a cell that cannot be submitted does not keep
# the others from it, but Ctrl-C does. SUBMITTED has the names of those that were submitted or are under way.
SUBMITTED=()
apart() {
  local code
  trap 'exit 130' INT # once the tool has ended, whatever it makes of the signal
  set +e
  (set -e; "$@")
  code=$?
  set -e
  [ $code -eq 0 ] || [ -n "${OPTION[grid]}" ] || exit $code
  if [ $code -eq 0 ]; then SUBMITTED+=("$2"); else echo "error: $2 is not submitted (exit code $code)" >&2; fi
  remember $code
}

# pack_source FILE COMMIT: the committed files, so that what runs is a commit; what differs from it is told.
pack_source() {
  local changed first
  mapfile -t changed < <(git -C "$here" --no-optional-locks status --porcelain)
  if [ ${#changed[@]} -gt 0 ]; then
    changed=("${changed[@]#???}") # without the letters of their state
    printf -v first ', %s' "${changed[@]:0:3}"
    [ ${#changed[@]} -le 3 ] || first+=" and $((${#changed[@]} - 3)) more"
    echo "files that differ from commit $(git -C "$here" rev-parse --short=12 "$2"), which is what runs: ${first:2}" >&2
  fi
  do_or_show git -C "$here" archive --format=tar.gz --output="$1" "$2"
}
