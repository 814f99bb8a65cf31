#!/usr/bin/env bash
# Talks to a tier's agent from this terminal: deploy/chat.sh <tier>
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib/ui.sh"
. "$(dirname "${BASH_SOURCE[0]}")/lib/control.sh"

case ${1:-} in
  --help | -h | '')
    echo "Usage: deploy/chat.sh <tier>    for example: deploy/chat.sh tasks"
    [ -n "${1:-}" ] || exit 2
    exit 0 ;;
esac
need_control channel-bridge
exec "$CONTROL_PROGRAM" chat "$@"
