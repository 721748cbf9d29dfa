# Sourced by the launchers that pass signals on to a command.

awaited() { # awaited PID: sets code to what a child of this shell ended with
  local again=0
  # A trap ends `wait` before the child has ended, and maybe right before it ends: then it is asked once more; a child that was asked already says 127.
  while :; do
    code=0
    wait "$1" || code=$?
    kill -0 "$1" 2>/dev/null || break
  done
  if [ "$code" -gt 128 ]; then
    wait "$1" || again=$?
    [ "$again" -eq 127 ] || code=$again
  fi
}
