#!/usr/bin/env bash
# Measures a drill that is up: latency of broker, model ingress and bridge against direct calls, events, memory, times of
# up.sh. docs/benchmarks.md holds what came out, and what it means.
#
# Owns: building and starting drill-bench. Does not: bring anything up or down.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../deploy/lib/all.sh"

case ${1:-} in
  --help | -h)
    echo "Usage: tests/bench.sh [--rounds N] [--requests N] [--connections N] [--turns N] [--denials N]"
    echo "As root, with deploy/up.sh --drill up and nothing else running. Prints tables."
    exit 0 ;;
esac
[ "$(id -u)" -eq 0 ] || die "Only root may enter the namespaces of containers." "Run: sudo tests/bench.sh"
find_operator
check_machine
[ "$(running_mode)" = drill ] || die "The drill is not up, and nothing else is measured." "Run deploy/up.sh --drill first."
cd "$ASSISTANT_ROOT"
with_cargo CARGO_TARGET_DIR="$RUST_TARGET" -- build --profile ci --locked --workspace --features assistant-tests/system --bin drill-bench
exec "$RUST_TARGET/ci/drill-bench" "$@"
