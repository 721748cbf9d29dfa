#!/usr/bin/env bash
# Starts a command again until it is done:
#   bash launch/supervise.sh python -m videomae_jax train --config=... --workdir=...
# It is started again after 75 (SIGTERM stopped it, with a checkpoint), 42 (the watchdog found it stuck), 74 (a checkpoint
# could not be written, be read by one of several processes, or be brought back from the durable place) and any crash; not after
# 0, 2 (a mistake in the command or the config), 126 and 127 (no such command) and 130 (Ctrl-C).
# PAUSE seconds (2) pass before a restart, doubled after each further crash up to PAUSE_MOST (300). After CRASHES (20) in a
# row it gives up, with the code of the last; a start that lasts STEADY seconds (600) or ends with 75 begins the row anew.
# SIGTERM and SIGINT go to the command, which saves; then nothing is started any more. Within a pause, and where the command
# ends with the code of a crash, the code is that of the signal (143, 130): a stop is told from a last crash.
set -uo pipefail
source "$(dirname "$0")/awaited.sh"
pause="${PAUSE:-2}" most="${PAUSE_MOST:-300}" crashes="${CRASHES:-20}" steady="${STEADY:-600}"
[ $# -gt 0 ] || { sed -n '2,3s/^# *//p' "$0" >&2; exit 2; }

child='' running='' ended='' waits="$pause" row=0
stopped() { if [ "$ended" = INT ]; then exit 130; else exit 143; fi; }
forward() {
  ended=$1
  [ -n "$running" ] || stopped # within a pause
  [ -z "$child" ] || kill "-$1" "$child" 2>/dev/null
}
trap '' PIPE # whoever started this may go away
trap 'forward TERM' TERM
trap 'forward INT' INT

while :; do
  begin=$SECONDS running=1
  # A job in the background ignores SIGINT unless it has a process group of its own; this shell passes signals on.
  set -m; "$@" & child=$!; set +m
  [ -z "$ended" ] || kill "-$ended" "$child" 2>/dev/null # the signal came before the child had a name
  awaited "$child"
  child=''
  case "$code" in 0 | 2 | 126 | 127 | 130) exit "$code" ;; esac
  if [ -n "$ended" ]; then
    [ "$code" != 75 ] || exit 75
    echo "supervise: exit code $code after SIG$ended" >&2
    stopped
  fi
  running=''
  [ -z "$ended" ] || stopped # the signal came after the look at it
  if [ "$code" = 75 ] || [ $((SECONDS - begin)) -ge "$steady" ]; then row=0 waits="$pause"; fi
  [ "$code" = 75 ] || row=$((row + 1))
  if [ "$row" -ge "$crashes" ]; then
    echo "supervise: exit code $code, crash $row in a row: giving up" >&2
    exit "$code"
  fi
  echo "supervise: exit code $code after $((SECONDS - begin)) s; next start in $waits s" >&2
  sleep "$waits" >/dev/null 2>&1 & wait $! # in the background, so that a signal is heard meanwhile
  [ "$code" = 75 ] || waits=$(awk -v a="$waits" -v b="$most" 'BEGIN { print (2 * a < b) ? 2 * a : b }')
done
