#!/usr/bin/env bash
# Says what each wall would do with a request, why, and what would allow it, without sending anything:
# deploy/explain.sh <tier> <method> <url> [--as <MCP server>]
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib/ui.sh"
. "$(dirname "${BASH_SOURCE[0]}")/lib/control.sh"

case ${1:-} in
  --help | -h | '')
    echo "Usage: deploy/explain.sh <tier> <method> <url> [--as <MCP server>] [--outside-turn] [--without-placeholder] [--json]"
    echo "For example: deploy/explain.sh tasks GET https://www.example.org/    exit status: 0 allowed, 1 denied, 2 no answer"
    [ -n "${1:-}" ] || exit 2
    exit 0 ;;
esac
# 1 is the answer "denied": why there is none must not look like it.
(need_control egress-auditor) || exit 2
need_control egress-auditor
exec "$CONTROL_PROGRAM" explain "$@"
