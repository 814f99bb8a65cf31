# One up or down at a time. Sourced, never run.
# shellcheck shell=bash

ASSISTANT_LOCK=/run/lock/assistant-deploy.lock

# Held until the script ends. Descriptor 9 must be closed for whatever the script leaves running.
take_lock() { # <who>
  exec 9>>"$ASSISTANT_LOCK"
  flock -n 9 || die "Another deploy script is running: $(tail -n 1 "$ASSISTANT_LOCK" 2>/dev/null)." \
    "Wait until it has ended, then run the same command again."
  printf '%s, process %s\n' "$1" $$ >"$ASSISTANT_LOCK"
}
