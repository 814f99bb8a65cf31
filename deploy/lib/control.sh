# Ways to the control socket of a service, for the commands that a person uses. Sourced, never run.
#
# Owns: saying why there is no way. Does not: need root, or change anything.
# shellcheck shell=bash

CONTROL_DIRECTORY=/run/assistant

# Sets CONTROL_PROGRAM, the service's own program, which is also its client.
need_control() { # <service>
  local directory=$CONTROL_DIRECTORY/$1 socket=$CONTROL_DIRECTORY/$1.sock
  CONTROL_PROGRAM=/usr/local/lib/assistant/bin/$1
  [ -x "$CONTROL_PROGRAM" ] || die "The stack is not installed on this machine." "Run deploy/up.sh --drill first."
  # Who may not enter a directory cannot tell whether the socket is there.
  if [ -d "$directory" ] && [ ! -x "$directory" ] || [ -S "$socket" ] && [ ! -w "$socket" ]; then
    die "You may not use $socket: it is for root, the group assistant, and the user who ran deploy/up.sh." \
      "Run it as that user, or with sudo."
  fi
  [ -S "$socket" ] || die "The stack is not running, or $1 is not up yet (there is no $socket)." "Run deploy/up.sh --drill."
}
