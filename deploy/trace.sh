#!/usr/bin/env bash
# Prints a turn as one tree, from the chat message to the bytes that left: deploy/trace.sh <trace id>
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib/ui.sh"
. "$(dirname "${BASH_SOURCE[0]}")/lib/control.sh"

case ${1:-} in
  --help | -h | '')
    echo "Usage: deploy/trace.sh <trace id>    the id is shown by the chat, and by: nats sub 'egress.denied.>'"
    [ -n "${1:-}" ] || exit 2
    exit 0 ;;
esac
# Said here rather than after the wait for spans that cannot come.
case ${1:-} in
  -*) ;;
  *)
    [[ $1 =~ ^[0-9A-Fa-f]{32}$ ]] || die "'$(printf '%s' "$1" | ui_harmless | head -c 80)' is not a trace id, which is 32 hex digits." \
      "Copy it from the chat, or from: nats sub 'egress.denied.>'"
    [[ $1 =~ [^0] ]] || die "A trace id of zeros only names no trace: whatever was refused there belonged to none." \
      "Copy another one from the chat, or from: nats sub 'egress.denied.>'"
    ;;
esac
need_control egress-auditor
# Spans of the last second may still be on their way to the collector.
exec "$CONTROL_PROGRAM" trace "$@" --wait 10
