#!/usr/bin/env bash
# Brings the stack up on this machine, from nothing or from whatever state it is in. See --help.
#
# Owns: the order of things. Each thing itself is in deploy/lib/. Containers, networks and the kernel table are made by
# tier-supervisor, which this script only starts and waits for.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib/all.sh"

usage() {
  cat <<'USAGE'
Usage: deploy/up.sh [--drill] [options]

Installs what is missing, builds the images, and brings the stack up; exits with 0 only when everything is healthy.
Running it again is safe: what has not changed is left running.

  --drill        Everything is real but the internet: no account is needed, and nothing leaves this machine.
                 Without it the stack is live and needs your accounts; what is missing is said first.
  --pool A.B.0.0/16
                 Addresses for the stack's networks (default 10.87.0.0/16), for machines where those are taken.
  --operator USER
                 Who uses the stack's commands without sudo, where that is not the user who runs this.
  --refresh      Rebuild the base images from today's packages (security updates), then everything on top of them.
  --build        Build every image on this machine that can be built; pull none.
  --pull         Pull external images by their locked digests; one that cannot be pulled is an error. Without either, an
                 image is pulled where a registry answers and nothing is compiled yet, and built otherwise. The same as
                 ASSISTANT_IMAGES=build or pull. Digests: deploy/images.lock, deploy/images.sh --help.
  --help         This text.

Logs are in /var/log/assistant. deploy/down.sh stops everything.
USAGE
}

mode=live
pool=
operator=
refresh=
images=
arguments=("$@")
while [ $# -gt 0 ]; do
  case $1 in
    --drill) mode=drill ;;
    --pool) [ $# -ge 2 ] || die "--pool needs a value." "For example: --pool 10.99.0.0/16"; pool=$2; shift ;;
    --pool=*) pool=${1#*=} ;;
    --operator) [ $# -ge 2 ] || die "--operator needs a value." "For example: --operator alice"; operator=$2; shift ;;
    --operator=*) operator=${1#*=} ;;
    --refresh) refresh=1 ;;
    --build | --pull)
      [ -z "$images" ] || [ "$images" = "${1#--}" ] ||
        die "--build and --pull contradict each other: all images are built, or they are pulled." "Give one of the two, or neither."
      images=${1#--}
      export ASSISTANT_IMAGES=$images
      ;;
    --help | -h) usage; exit 0 ;;
    *) die "up.sh does not know the option '$1'." "deploy/up.sh --help lists the options." ;;
  esac
  shift
done
case $pool in
  '' | *[!0-9./]*) [ -z "$pool" ] || die "--pool '$pool' is not an address block." "For example: --pool 10.99.0.0/16" ;;
  *.*.0.0/16) ;;
  *) die "--pool must be a /16, not '$pool'." "For example: --pool 10.99.0.0/16" ;;
esac

image_policy >/dev/null
become_root "$ASSISTANT_ROOT/deploy/up.sh" "${arguments[@]}"
umask 022
find_operator
find_stack_user "$operator"
check_machine
take_lock "deploy/up.sh"
# When a mistake is told. Before anything is installed or compiled: what the shell can see, which is what is missing, what
# .env still has from the example, and fields of tiers.yaml that there are not. Everything else is for tier-supervisor to
# say, which is therefore compiled before all others (seconds where it was compiled before, minutes on a new machine) and
# asked at once, supposing that all images exist. It is asked again, images included, right before it is started. An
# installed one of an earlier version is not asked: it may know other fields.
[ "$mode" = drill ] || check_live
check_tiers_fields "$mode"
other=drill
[ "$mode" = live ] || other=live

# The pool once chosen stays, until another is asked for.
if [ -z "$pool" ]; then pool=$(jq -r '.pool // empty' "$ASSISTANT_SETTINGS" 2>/dev/null || true); fi
pool=${pool:-10.87.0.0/16}

check_preconditions() {
  local cold=2
  if [ "$(running_mode)" = "$other" ]; then
    die "The $other stack is running, and the two are never up at the same time." "Stop it first: deploy/down.sh"
  fi
  [ "$mode" = drill ] || check_live
  [ -d "$TOOLS/$(tool_jaeger)" ] && [ -d "$RUST_BIN" ] || cold=12
  need_space "$CACHE" "$cold" "builds"
  need_space /var/lib/docker $((cold / 2)) "images"
  need_space "$ASSISTANT_STATE" 1 "the stack's own files"
  # Our own gates may hold them.
  daemon_running tier-supervisor || check_ports "$mode"
  echo "mode $mode, operator $STACK_USER, cache $CACHE"
}

ensure_compilers() {
  ensure_rust
  ensure_go
}

build_programs() {
  unless_pulled nats build_nats_server
  build_nats_cli
  build_grpcurl
}

check_what_is_written() {
  check_files "$RUST_BIN/tier-supervisor" "$mode" "$pool"
}

build_our_programs() {
  build_rust
  build_static_wrapper
}

install_programs() {
  local name
  for name in tier-supervisor secret-broker egress-auditor channel-bridge drill-internet; do
    [ -x "$RUST_BIN/$name" ] || die "The program $name was not built." "Read $ASSISTANT_LOG_DIR/build-rust.log."
    if install_changed "$RUST_BIN/$name" "$ASSISTANT_LIBEXEC/$name" 755; then echo "installed $name"; fi
  done
  if install_changed "$(static_wrapper)" "$ASSISTANT_LIBEXEC/mcp-stdio" 755; then echo "installed mcp-stdio"; fi
  install_operator_programs
}

write_configuration() {
  [ "$mode" = live ] || make_drill_secrets
  write_settings "$mode" "$pool"
}

# What a program was started with: when any of it changes, it is started again.
fingerprint() { # <file or directory>...
  find "$@" -type f -print0 2>/dev/null | LC_ALL=C sort -z | xargs -0 -r sha256sum | short_hash
}

start_drill_internet() {
  local state=$ASSISTANT_STATE/drill waited=0
  bash "$ASSISTANT_ROOT/deploy/lib/drill-net.sh" up
  install -d -m 700 "$state/doubles"
  daemon_ensure drill-internet "$(fingerprint "$ASSISTANT_LIBEXEC/drill-internet" "$state/secrets")" session \
    ip netns exec assistant-drill "$ASSISTANT_LIBEXEC/drill-internet" run --state-dir "$state/doubles" \
    --marvin-token-file "$state/secrets/marvin_api_key" --model-key-file "$state/secrets/model_api_key" \
    --telegram-token-file "$state/secrets/telegram_bot_token"
  until [ -S /run/assistant-drill/control.sock ] && [ -s "$state/doubles/ca.pem" ]; do
    waited=$((waited + 1))
    if [ "$waited" -ge 300 ]; then
      daemon_tail drill-internet
      die "The drill's internet did not start within 30 seconds." "Read: $(daemon_log drill-internet)"
    fi
    sleep 0.1
  done
}

start_supervisor() {
  local boot=boot problems
  [ "$mode" = live ] || boot=session
  # With every problem of tiers.yaml and the settings in one go, before anything is started.
  if ! problems=$("$ASSISTANT_LIBEXEC/tier-supervisor" check-config --config "$ASSISTANT_SETTINGS" 2>&1); then
    printf '%s\n' "$problems"
    die "The configuration is not right: $(printf '%s' "$problems" | tail -n 20)" "Mend it, then run the same command again."
  fi
  # What is not wrong and yet worth knowing; the table at the end has it too.
  [ -z "$problems" ] || printf '%s\n' "$problems"
  daemon_ensure tier-supervisor \
    "$(fingerprint "$ASSISTANT_LIBEXEC/tier-supervisor" "$ASSISTANT_SETTINGS" "$IMAGES_FILE" "$ASSISTANT_STATE/$mode/secrets")" "$boot" \
    "$ASSISTANT_LIBEXEC/tier-supervisor" run --config "$ASSISTANT_SETTINGS"
}

wait_until_healthy() {
  local waited=0 table
  # Any answer will do: its status says whether all is well, which it is not yet.
  until [ -S /run/assistant/tier-supervisor.sock ] &&
    [ -n "$("$ASSISTANT_LIBEXEC/tier-supervisor" status --json 2>/dev/null || true)" ]; do
    waited=$((waited + 1))
    if [ "$waited" -ge 120 ]; then
      daemon_tail tier-supervisor
      die "tier-supervisor did not start within 60 seconds." "Read: $(daemon_log tier-supervisor)"
    fi
    sleep 0.5
  done
  if ! table=$("$ASSISTANT_LIBEXEC/tier-supervisor" status --wait); then
    echo "--- what tier-supervisor says:"
    daemon_tail tier-supervisor
    echo "--- how it stands:"
    printf '%s\n' "$table"
    die "Not everything became healthy." "The table below names the part. Its log: docker logs <container>, or $(daemon_log tier-supervisor)"
  fi
}

screen() {
  local here=$ASSISTANT_ROOT/deploy tier
  [ "$PWD" != "$ASSISTANT_ROOT" ] || here=deploy
  tier=$("$ASSISTANT_LIBEXEC/tier-supervisor" status --json 2>/dev/null | jq -r '.tiers[0].name' 2>/dev/null || true)
  printf '\n'
  if [ "$mode" = drill ]; then
    cat <<'BANNER'
=== DRILL ==========================================================================================
The stack is up, and its internet is a drill: the task service, the model and every other host are
doubles on this machine. Nothing you type here leaves it, and nothing here is one of your accounts.
====================================================================================================
BANNER
  else
    printf '=== The stack is up, with your accounts. =============================================================\n'
  fi
  printf '\nWhat is up\n'
  # Its status was asked for above; what has changed since stands in the table.
  { "$ASSISTANT_LIBEXEC/tier-supervisor" status || true; } | ui_harmless | sed 's/^/  /'
  { image_notes; settings_notes "$mode"; } | ui_harmless | sed 's/^/  /'
  printf '\nPages, for a browser on this machine; each link logs it in once, within ten minutes\n'
  { "$ASSISTANT_LIBEXEC/tier-supervisor" login 2>&1 || true; } | ui_harmless | sed 's/^/  /'
  cat <<SCREEN

Where to look
  tier-supervisor status             the table above, as it is then
  nats sub 'egress.denied.>'         every refused attempt, as it happens
  /var/log/assistant                 logs of the builds and of the programs of this machine
  tier-supervisor login              new links to the pages; with a name, to that one
  grpcurl -plaintext -unix /run/assistant/tier-supervisor.sock assistant.tier.v1.TierService/ListTiers

Next
  1. $here/chat.sh ${tier:-<tier>}              talk to the agent
  2. nats sub 'egress.denied.>'      in a second terminal, while you ask the agent for something it may not do
  3. $here/trace.sh <id>             the trace id from there, or from the chat: the whole turn as one tree

$here/down.sh stops everything.
SCREEN
}

if [ -n "$refresh" ]; then
  install -d "$ASSISTANT_STATE"
  date -u +%Y-%m-%d >"$ASSISTANT_STATE/base-generation"
fi
steps=21
[ "$mode" = drill ] || steps=20
install -d -m 755 "$ASSISTANT_STATE"
ui_plan "$steps" /var/log/assistant
say "Bringing up the $mode stack. The first time this compiles everything, which takes long (docs/benchmarks.md); later it takes seconds."
step "Packages of this machine" packages install_machine_packages
step "Is everything in order here" preconditions check_preconditions
step "Docker" docker ensure_docker
step "Compilers" compilers ensure_compilers
step "tier-supervisor, in Rust" build-supervisor build_supervisor
step "What you wrote: tiers.yaml, allowlist, settings" check-files check_what_is_written
step "External images" external-images choose_images "$IMAGE_SOURCES"
step "Our own services, in Rust" build-rust build_our_programs
step "nats-server, nats and grpcurl" build-nats build_programs
step "Jaeger" build-jaeger unless_pulled jaeger build_jaeger
step "OpenTelemetry Collector" build-otelcol unless_pulled otel-collector build_otelcol
step "Task server (amazing-marvin-mcp)" build-mcp build_mcp_amazing_marvin
step "LiteLLM, the model router" build-litellm build_litellm
step "ZeroClaw, the agent" build-zeroclaw build_zeroclaw
step "Images" images build_images
step "Programs" programs install_programs
step "Settings" settings write_configuration
[ "$mode" = live ] || step "The drill's internet" drill-internet-start start_drill_internet
step "tier-supervisor" supervisor-start start_supervisor
step "Every part healthy, walls checked" health wait_until_healthy
step "The operator's context for nats" nats-context install_nats_context "$mode"
ui_write_times "$ASSISTANT_LOG_DIR/up-times.tsv"
screen
say ""
say "Took $(ui_duration $((SECONDS - UI_STARTED)))."
