# One up or down at a time. Sourced, never run.
# shellcheck shell=bash

# Root's alone: whoever may open a file may lock it, and so keep up.sh and down.sh from running. The directory stays when
# the stack is down, because down.sh itself holds the lock; a restart of the machine empties /run.
ASSISTANT_LOCK=/run/assistant-deploy/lock

# Held until the script ends. Descriptor 9 must be closed for whatever the script leaves running.
take_lock() { # <who>
  install -d -m 755 -o root -g root "${ASSISTANT_LOCK%/*}"
  [ -e "$ASSISTANT_LOCK" ] || (umask 077; : >>"$ASSISTANT_LOCK")
  exec 9>>"$ASSISTANT_LOCK"
  flock -n 9 || die "Another deploy script is running: $(tail -n 1 "$ASSISTANT_LOCK" 2>/dev/null)." \
    "Wait until it has ended, then run the same command again."
  printf '%s, process %s\n' "$1" $$ >"$ASSISTANT_LOCK"
}
