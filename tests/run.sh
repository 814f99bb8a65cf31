#!/usr/bin/env bash
# Every check of the project, or single stages of it. See --help.
#
# Owns: the order of the checks, their times, and the last line. Does not: end any process that it did not start.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../deploy/lib/all.sh"

usage() {
  cat <<'USAGE'
Usage: tests/run.sh [stage]... [--turns N]

Without a stage, those up to system run, in this order. Everything that is compiled goes into
${XDG_CACHE_HOME:-~/.cache}/secure-assistant-stack, so the second run is much shorter than the first.

  packages    what the checks need on this machine (apt; only as root)
  tools       nats-server, nats, grpcurl, cargo-deny, ZeroClaw, Jaeger and the OpenTelemetry collector, built from their
              published sources; Debian's Prometheus, unpacked
  format      cargo fmt --check
  lint        clippy over the workspace with warnings denied; shellcheck over the scripts; Grafana's own types over the
              dashboards, where there is npm
  deny        cargo-deny: bans, licences, sources
  unit        tests of every crate, service tests against a real nats-server, ZeroClaw and collector included; as root
              also those that make network namespaces
  system      as root: images from a registry on loopback; deploy/up.sh --drill, the scenarios against the running stack,
              the dashboard of a tier in Chromium, up again, a short soak, down, leftovers
  soak        as root: many turns in all tiers of the drill (--turns N, else 200), and whether memory, handles or disk of
              any part grew. Brings the drill up where it is not. Not part of a plain run, which has 60 turns of it
  killed      as root: kills each part of the drill in the middle of a turn, and takes the kernel table away. Takes long;
              not part of a plain run
  advisories  cargo-deny: known vulnerabilities; SKIPPED where the database cannot be reached. Not part of a plain run

The last line says how many checks and tests passed and failed; the exit status is 0 when none failed. What could not run
here is named SKIPPED, and counted apart.
USAGE
}

all_stages=(packages tools format lint deny unit system)
stages=()
turns=200
while [ "$#" -gt 0 ]; do
  case $1 in
    --help | -h) usage; exit 0 ;;
    --turns)
      [[ ${2:-} =~ ^[0-9]{2,7}$ ]] || die "--turns wants a number from 27 up." "For example: tests/run.sh soak --turns 200"
      turns=$2
      shift ;;
    packages | tools | format | lint | deny | unit | system | soak | killed | advisories) stages+=("$1") ;;
    *) die "tests/run.sh knows no stage '$1'." "tests/run.sh --help lists the stages." ;;
  esac
  shift
done
[ "${#stages[@]}" -gt 0 ] || stages=("${all_stages[@]}")

find_operator
check_machine
cd "$ASSISTANT_ROOT"
# The same images everywhere, whether or not a registry is in reach.
export ASSISTANT_IMAGES=${ASSISTANT_IMAGES:-build}
passed=0
failed=0
skipped=0
times=()
failures=()
work=$(mktemp -d)
stack_started=

clean_up() {
  local status=$?
  rm -rf "$work"
  # Only what this run brought up.
  [ -z "$stack_started" ] || bash "$ASSISTANT_ROOT/deploy/down.sh" || true
  exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# Whether the last check went well. Not a status: a function called in a condition runs without errexit, all the way down.
ok=

# One check: a command, in a subshell of its own with errexit in force.
check() { # <name> <command>...
  local name=$1 status=0
  shift
  printf -- '--- %s\n' "$name"
  set +e
  (set -e; "$@")
  status=$?
  set -e
  ok=
  if [ "$status" -eq 0 ]; then
    ok=1
    passed=$((passed + 1))
    return 0
  fi
  failed=$((failed + 1))
  failures+=("$name (status $status)")
  printf 'FAILED: %s\n' "$name"
}

skip() { # <name> <why>
  skipped=$((skipped + 1))
  printf 'SKIPPED: %s: %s\n' "$1" "$2"
}

# Reasons for which a test may say SKIPPED. Everything else is at hand in a run of this script, and then skipping hides a
# hole. Squid exists only in its image; the `system` stage starts it with what is rendered.
may_skip='^(needs root, |ASSISTANT_SQUID_BIN is not set$|this machine is set up for a live stack$)'
# The files of the stack that this one replaces lie beside the project in CI, and with its makers.
[ "${CI:-}" = true ] || may_skip="$may_skip|^the older stack's files are not in "

# A run of test programs, counted test by test. One that ends without a result (it did not compile, or was killed) counts
# as one failure. A test that says SKIPPED counts as skipped, though its program calls it passed.
check_tests() { # <name> <command>...
  local name=$1 status=0 good bad left_out line
  shift
  printf -- '--- %s\n' "$name"
  set +e
  (set -e; "$@") 2>&1 | tee "$work/output"
  status=${PIPESTATUS[0]}
  set -e
  read -r good bad < <(sed -n 's/^test result: .* \([0-9]*\) passed; \([0-9]*\) failed;.*/\1 \2/p' "$work/output" |
    awk '{ good += $1; bad += $2 } END { print good + 0, bad + 0 }')
  if [ "$status" -ne 0 ] && [ "$bad" -eq 0 ]; then
    bad=1
    failures+=("$name ended with status $status")
  fi
  # A stage that ran no test has shown nothing.
  if [ "$status" -eq 0 ] && [ "$((good + bad))" -eq 0 ]; then
    bad=1
    failures+=("$name ran no test")
  fi
  sed -n 's/^.*SKIPPED: //p' "$work/output" | LC_ALL=C sort >"$work/skipped"
  while IFS= read -r line; do
    bad=$((bad + 1))
    good=$((good - 1))
    failures+=("$name skipped a test that could run: $line")
  done < <(grep -Ev "$may_skip" "$work/skipped" || true)
  left_out=$(grep -Ec "$may_skip" "$work/skipped" || true)
  skipped=$((skipped + left_out))
  passed=$((passed + good - left_out))
  failed=$((failed + bad))
  while IFS= read -r line; do failures+=("$line"); done < <(sed -n 's/^test \(.*\) \.\.\. FAILED$/\1/p' "$work/output" | LC_ALL=C sort -u)
  ok=
  [ "$bad" -gt 0 ] || ok=1
}

workspace_cargo() { # <arguments>...
  with_cargo CARGO_TARGET_DIR="$RUST_TARGET" -- "$@"
}

stage_packages() {
  if [ "$(id -u)" -ne 0 ]; then
    local missing
    missing=$(missing_packages "${MACHINE_PACKAGES[@]}" shellcheck sudo | tr '\n' ' ')
    [ -z "$missing" ] || skip packages "not root, and missing: $missing"
    return 0
  fi
  check "packages" install_test_packages
}

install_test_packages() {
  install_machine_packages
  # sudo: for the scenario of a person who is not root.
  install_packages shellcheck sudo
}

build_test_tools() {
  ensure_rust
  ensure_go
  build_nats_server
  build_nats_cli
  build_grpcurl
  build_cargo_deny
  build_zeroclaw
  build_otelcol
  build_jaeger
  build_prometheus
}

# The programs that tests of the workspace start, and the variables that name them there.
test_programs() {
  printf '%s\n' "ASSISTANT_NATS_SERVER_BIN=$TOOLS/$(tool_nats_server)/bin/nats-server" \
    "ASSISTANT_ZEROCLAW_BIN=$TOOLS/$(tool_zeroclaw)/bin/zeroclaw" \
    "ASSISTANT_OTELCOL_BIN=$TOOLS/$(tool_otelcol)/bin/otel-collector" \
    "ASSISTANT_JAEGER_BIN=$TOOLS/$(tool_jaeger)/bin/jaeger" \
    "ASSISTANT_PROMETHEUS_BIN=$TOOLS/$(tool_prometheus)/bin/prometheus"
}

test_programs_are_there() {
  local program
  while IFS= read -r program; do
    [ -x "${program#*=}" ] || return 1
  done < <(test_programs)
}

stage_tools() { check "tools" build_test_tools; }

# A check that is part of the toolchain; the pinned one, for machines without a new enough Rust, is only the compiler.
check_component() { # <name> <cargo command> <arguments>...
  local name=$1
  shift
  if workspace_cargo "$1" --version >/dev/null 2>&1; then
    check "$name" workspace_cargo "$@"
  else
    skip "$name" "the toolchain has no cargo $1"
  fi
}

stage_format() { check_component "cargo fmt" fmt --all --check; }

stage_lint() {
  check_component "clippy" clippy --workspace --all-targets --all-features --profile ci --locked -- -D warnings
  if command -v shellcheck >/dev/null 2>&1; then
    check "shellcheck" shellcheck -x -P SCRIPTDIR deploy/*.sh deploy/lib/*.sh deploy/images/mcp-amazing-marvin/mcp-server \
      deploy/images/sandbox-daemon/bin/sandbox-daemon deploy/images/zeroclaw-docker/docker tests/run.sh tests/bench.sh .ci/run
  else
    skip shellcheck "it is not installed"
  fi
  if command -v npm >/dev/null 2>&1; then
    check "dashboards" check_dashboards
  else
    skip dashboards "npm is not installed"
  fi
}

deny() { # <cargo-deny arguments>...
  as_operator env PATH="$TOOLS/$(tool_cargo_deny)/bin:$(toolchain_path)" cargo-deny --all-features "$@"
}

# Dashboards against the types that Grafana publishes. In the cache: npm puts hundreds of files beside what it reads.
check_dashboards() {
  local work=$CACHE/grafana-types
  as_operator mkdir -p "$work"
  as_operator cp tests/grafana/{check.mjs,package.json,package-lock.json} "$work"
  as_operator npm --prefix "$work" ci --ignore-scripts --no-audit --no-fund --loglevel error
  as_operator env DASHBOARDS="$ASSISTANT_ROOT/deploy/grafana/dashboards" node "$work/check.mjs"
}

stage_deny() {
  [ -d "$TOOLS/$(tool_cargo_deny)" ] || stage_tools
  # cargo-deny reads the crates of every platform; a build fetches only those of this one.
  check "crates of every platform" workspace_cargo fetch --locked --quiet
  [ -n "$ok" ] || return 0
  check "cargo deny" deny --offline --locked check --config .deny.toml --hide-inclusion-graph bans licenses sources
}

stage_advisories() {
  [ -d "$TOOLS/$(tool_cargo_deny)" ] || stage_tools
  if ! deny --locked fetch --config .deny.toml db >"$work/fetch" 2>&1; then
    tail -n 3 "$work/fetch" | ui_harmless
    skip advisories "the advisory database cannot be reached"
    return 0
  fi
  check "advisories" deny --locked check --config .deny.toml --disable-fetch advisories
}

stage_unit() {
  local programs
  test_programs_are_there || stage_tools
  mapfile -t programs < <(test_programs)
  PATH="$(tools_path):$PATH:/usr/sbin:/sbin" check_tests "unit and service tests" \
    with_cargo CARGO_TARGET_DIR="$RUST_TARGET" "${programs[@]}" -- test --workspace --profile ci --locked --no-fail-fast
  # Behind sudo the operator compiles and runs the tests, but only root may make network namespaces.
  if [ "$(id -u)" -eq 0 ] && [ "$OPERATOR_UID" -ne 0 ]; then
    check_tests "kernel tests, as root" run_kernel_tests
  fi
}

run_kernel_tests() {
  workspace_cargo test --profile ci --locked --workspace --test kernel --no-run \
    --message-format json-render-diagnostics >"$work/messages"
  (cd services/tier-supervisor && "$(sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' "$work/messages" | tail -n 1)")
}

# Which containers run, and since when: what a second `up` must not change.
running_containers() {
  local ids
  mapfile -t ids < <(docker ps -q --no-trunc --filter label=assistant.managed=true | LC_ALL=C sort)
  docker inspect --format '{{.Name}} {{.Id}} {{.State.StartedAt}}' "${ids[@]}"
  daemon_pid tier-supervisor 2>/dev/null || systemctl show -p MainPID assistant-tier-supervisor.service
}

up_again() {
  local before after started=$SECONDS
  before=$(running_containers)
  bash deploy/up.sh --drill
  after=$(running_containers)
  if [ "$before" != "$after" ]; then
    diff <(printf '%s\n' "$before") <(printf '%s\n' "$after")
    echo "something was restarted that had not changed"
    return 1
  fi
  echo "the second start took $((SECONDS - started)) s"
}

# What the stack leaves behind when it is down: must be nothing.
leftovers() {
  {
    docker ps -a --filter label=assistant.managed=true --format 'container {{.Names}}'
    docker network ls --filter label=assistant.managed=true --format 'network {{.Name}}'
    nft list tables | sed -n 's/^table \(.* assistant.*\)$/kernel table \1/p'
    ip rule list | sed -n 's/^\(.*lookup 8787.*\)$/rule \1/p'
    ip route show table 8787 2>/dev/null | sed 's/^/route /' || true
    ip -o link show | awk -F': ' '$2 ~ /^(as-|ast|aso)/ { print "interface " $2 }'
    ip netns list | sed -n 's/^\(assistant-.*\)$/namespace \1/p'
    find /proc -maxdepth 2 -name exe -lname "$ASSISTANT_LIBEXEC/*" -printf 'process %h %l\n' 2>/dev/null || true
    find /run/assistant /run/assistant-daemons /run/assistant-drill -mindepth 1 -maxdepth 1 -printf 'file %p\n' 2>/dev/null || true
  } >"$work/leftovers"
  [ ! -s "$work/leftovers" ] || { cat "$work/leftovers"; return 1; }
}

# The test programs are built by the operator and run as root: they look into namespaces and /proc of the containers.
build_scenarios() {
  # Of the whole workspace: one crate alone would have other features of its dependencies, and they be compiled again.
  workspace_cargo test --profile ci --locked --workspace --features assistant-tests/system \
    --test system --test machine --test images --test soak --no-run \
    --message-format json-render-diagnostics >"$work/messages"
  jq -r 'select(.reason == "compiler-artifact" and .profile.test and .executable != null) | "\(.target.name) \(.executable)"' \
    "$work/messages" >"$work/scenarios"
  grep -q '^machine ' "$work/scenarios"
  grep -q '^system ' "$work/scenarios"
  grep -q '^images ' "$work/scenarios"
  grep -q '^soak ' "$work/scenarios"
}

build_registry() {
  ensure_go
  build_nats_server
  build_docker_registry
}

run_scenarios() { # <test target> <arguments of its program>...
  local program
  program=$(sed -n "s/^$1 //p" "$work/scenarios")
  shift
  cd tests
  PATH="$(tools_path):$TOOLS/$(tool_docker_registry)/bin:$PATH:/usr/sbin:/sbin" timeout 2400 "$program" --test-threads 1 "$@"
}

# Whether there is a browser, or is now. Debian has one; Ubuntu's is no package.
have_browser() {
  command -v npm >/dev/null 2>&1 || (install_packages npm) || return 1
  command -v chromium >/dev/null 2>&1 || (install_packages chromium) || return 1
}

# The dashboard as a person uses it. In the cache: npm puts files beside what it reads.
run_browser() {
  local work=$CACHE/browser
  as_operator mkdir -p "$work"
  as_operator cp tests/browser/{dashboard.mjs,package.json,package-lock.json} "$work"
  as_operator npm --prefix "$work" ci --ignore-scripts --no-audit --no-fund --loglevel error
  as_operator env SUPERVISOR="$ASSISTANT_LIBEXEC/tier-supervisor" CHROMIUM="$(command -v chromium)" \
    SCREENSHOTS="$work/screenshots" timeout 900 node "$work/dashboard.mjs"
}

# However long it takes: it ends by itself when too much goes wrong.
run_soak() { # <turns>
  local program
  program=$(sed -n "s/^soak //p" "$work/scenarios")
  PATH="$(tools_path):$PATH:/usr/sbin:/sbin" "$program" --turns "$1" --figures "$ASSISTANT_LOG_DIR/soak.tsv"
}

show_state() {
  docker ps -a --filter label=assistant.managed=true --format 'table {{.Names}}\t{{.Status}}' || true
  daemon_tail tier-supervisor 2>/dev/null | ui_harmless || true
}

stage_system() {
  if [ "$(id -u)" -ne 0 ]; then
    check "system: must be run as root (sudo tests/run.sh system)" false
    return 0
  fi
  # Also a machine where Docker or jq is not installed yet has no live stack.
  if [ "$(running_mode)" = live ]; then
    check "system: a live stack runs on this machine, and the tests will not stop it (deploy/down.sh does)" false
    return 0
  fi
  check "clean up what a run that was cut off left" bash deploy/down.sh
  [ -n "$ok" ] || return 0
  check "build the scenarios" build_scenarios
  [ -n "$ok" ] || return 0
  check_tests "a machine that is not as it should be" run_scenarios machine
  check "a registry for loopback, and a program for its images" build_registry
  [ -z "$ok" ] || check_tests "images from a registry" run_scenarios images
  stack_started=1
  check "deploy/up.sh --drill" bash deploy/up.sh --drill
  if [ -n "$ok" ]; then
    check_tests "scenarios" run_scenarios system --skip killed::
    [ -n "$ok" ] || show_state
    if have_browser; then
      check "the dashboard of a tier in Chromium" run_browser
    else
      skip "the dashboard of a tier in Chromium" "npm or chromium cannot be installed"
    fi
    check "deploy/up.sh --drill again changes nothing" up_again
    # So that it cannot rot; what leaks little takes the stage of its own to be seen.
    check "60 turns leave everything as it was" run_soak 60
  else
    show_state
  fi
  check "deploy/down.sh" bash deploy/down.sh
  stack_started=
  check "nothing is left behind" leftovers
}

# A drill for a stage of its own; one that is up already stays up afterwards.
have_drill() { # <stage>
  if [ "$(id -u)" -ne 0 ]; then
    check "$1: must be run as root (sudo tests/run.sh $1)" false
    return 0
  fi
  if [ "$(running_mode)" = live ]; then
    check "$1: a live stack runs on this machine, and only a drill is tried" false
    return 0
  fi
  check "build the scenarios" build_scenarios
  [ -n "$ok" ] || return 0
  [ "$(running_mode)" = drill ] || stack_started=1
  check "deploy/up.sh --drill" bash deploy/up.sh --drill
}

stage_soak() {
  have_drill soak
  [ -z "$ok" ] || check "$turns turns leave everything as it was" run_soak "$turns"
  [ -n "$ok" ] || show_state
}

stage_killed() {
  have_drill killed
  [ -z "$ok" ] || check_tests "each part killed in a turn" run_scenarios system killed::
  [ -n "$ok" ] || show_state
}

started=$SECONDS
for stage in "${stages[@]}"; do
  printf '\n=== %s\n' "$stage"
  begin=$SECONDS
  "stage_$stage"
  times+=("$(printf '%-11s %s' "$stage" "$(ui_duration $((SECONDS - begin)))")")
done

printf '\n=== times\n'
printf '%s\n' "${times[@]}"
printf '%-11s %s\n' total "$(ui_duration $((SECONDS - started)))"
[ "$skipped" -eq 0 ] || printf '%s skipped\n' "$skipped"
if [ "$failed" -gt 0 ]; then
  printf '\n=== failures\n'
  printf '%s\n' "${failures[@]}"
fi
printf '%s passed, %s failed\n' "$passed" "$failed"
[ "$failed" -eq 0 ]
