#!/usr/bin/env bash
# Talks to a tier's agent from this terminal: deploy/chat.sh <tier>
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib/ui.sh"

case ${1:-} in
  --help | -h | '')
    echo "Usage: deploy/chat.sh <tier>    for example: deploy/chat.sh tasks"
    [ -n "${1:-}" ] || exit 2
    exit 0 ;;
esac
program=/usr/local/lib/assistant/bin/channel-bridge
socket=/run/assistant/channel-bridge.sock
[ -x "$program" ] || die "The stack is not installed on this machine." "Run deploy/up.sh --drill first."
# Who may not enter the directory cannot tell that the socket is there.
[ ! -d "${socket%/*}" ] || [ -x "${socket%/*}" ] ||
  die "You may not use ${socket%/*}: it belongs to the user who ran deploy/up.sh." "Run it as that user, or with sudo."
[ -S "$socket" ] || die "The stack is not running, or channel-bridge is not up yet (there is no $socket)." "Run deploy/up.sh --drill."
[ -w "$socket" ] || die "You may not use $socket: it belongs to the user who ran deploy/up.sh." "Run it as that user, or with sudo."
exec "$program" chat "$@"
