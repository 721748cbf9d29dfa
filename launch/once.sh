#!/usr/bin/env bash
# Carries out a command once for each launch, however often it is asked to:
#   bash launch/once.sh LAUNCH MESSAGE COMMAND...
# gcloud repeats what it sends to a host where the connection breaks. While the run lives the repetition waits for its end, and has its code.
# Where a run of another launch is under way MESSAGE is the error. The folder keeps the launch and, once its run has ended, the code in .launch.
set -uo pipefail
launch=$1 message=$2 told=
shift 2
exec 9>>.running

keep() { echo "$*" >.launch.new && mv .launch.new .launch; }

while :; do
  # Before the look at the code: of a run that ends in between there is one.
  if flock -n 9; then free=1; else free=; fi
  last='' code=''
  [ ! -f .launch ] || read -r last code <.launch
  if [ "$last" = "$launch" ] && [ -n "$code" ]; then
    echo "the run of this launch has ended on this host (exit code $code); it is not started again" >&2
    exit "$code"
  fi
  [ -z "$free" ] || break
  [ "$last" = "$launch" ] || { echo "$message" >&2; exit 2; }
  [ -n "$told" ] || echo "the run of this launch is under way on this host; its end is waited for" >&2
  told=1
  flock -w 10 9 # what a run has left behind may hold the lock when its code is there
done
keep "$launch"
trap : HUP INT TERM # the command, which gets it too, saves; its code is kept
"$@"
code=$?
keep "$launch" "$code"
exit "$code"
