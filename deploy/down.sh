#!/usr/bin/env bash
# Stops the stack, drill or live. See --help.
#
# Owns: the order in which things end, so that no path opens on the way; the programs and files that up.sh put on the
# machine. Containers, networks, volumes and the kernel table are taken away by `tier-supervisor down`, by label: nothing
# without our label is touched. Docker itself stays up.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib/all.sh"

usage() {
  cat <<'USAGE'
Usage: deploy/down.sh [--purge [--yes]]

Stops all containers and programs of the stack and removes its networks and kernel table. Data stays.

  --purge   Remove its data as well, after asking: volumes (conversations, audit log), secrets, keys and settings of the
            stack that ran last, drill or live; when the other has left nothing either, programs and images too.
            What was compiled stays in the cache, so that the next start is quick; its place is printed.
  --yes     Do not ask.
  --help    This text.

Docker keeps running: other things on this machine may use it.
USAGE
}

purge=
yes=
arguments=("$@")
for argument in "$@"; do
  case $argument in
    --purge) purge=1 ;;
    --yes | -y) yes=1 ;;
    --help | -h) usage; exit 0 ;;
    *) die "down.sh does not know the option '$argument'." "deploy/down.sh --help lists the options." ;;
  esac
done
[ -z "$yes" ] || [ -n "$purge" ] || die "--yes goes with --purge only." "Without --purge nothing is asked, and no data is removed."

become_root "$ASSISTANT_ROOT/deploy/down.sh" "${arguments[@]}"
find_operator
take_lock "deploy/down.sh"

# Which stack was up last. Without settings there is none, and nothing to remove but what up.sh leaves everywhere.
mode=$(jq -r '.mode // empty' "$ASSISTANT_SETTINGS" 2>/dev/null || true)

if [ -n "$purge" ] && [ -z "$yes" ]; then
  [ -t 0 ] || die "--purge asks before it removes data, and there is no terminal to ask on." "Add --yes to remove it without being asked."
  printf 'This removes everything of the %s stack: conversations, audit log, keys, and the secrets under %s.\nType yes to go on: ' \
    "${mode:-(stopped)}" "$ASSISTANT_STATE/$mode"
  read -r answer
  [ "$answer" = yes ] || { say "Nothing was removed, and nothing stopped."; exit 1; }
fi

stop_supervisor() { daemon_stop tier-supervisor; }

labelled() { # <list command of docker>...
  docker "$@" -q --filter label=assistant.managed=true
}

take_away() {
  local arguments=()
  if ! command -v docker >/dev/null 2>&1; then
    echo "there is no Docker on this machine, so nothing of ours either"
    return 0
  fi
  # Docker knows what there is; an engine that ended uncleanly is started for that.
  ensure_docker
  if [ ! -x "$ASSISTANT_LIBEXEC/tier-supervisor" ]; then
    [ -z "$(labelled ps -a)$(labelled network ls)" ] || die "The program that takes the stack away is missing ($ASSISTANT_LIBEXEC/tier-supervisor)." \
      "deploy/up.sh puts it back; after that deploy/down.sh works again."
    return 0
  fi
  [ -z "$purge" ] || [ -z "$mode" ] || arguments+=(--purge)
  "$ASSISTANT_LIBEXEC/tier-supervisor" down "${arguments[@]}"
}

stop_drill() {
  daemon_stop drill-internet
  bash "$ASSISTANT_ROOT/deploy/lib/drill-net.sh" down
}

remove_files() {
  local reference
  rm -rf /run/assistant /run/assistant-daemons /run/assistant-drill
  [ -n "$purge" ] || return 0
  rm -f "$ASSISTANT_SETTINGS"
  remove_operator_context
  if [ -d "$ASSISTANT_STATE/live" ] || [ -d "$ASSISTANT_STATE/drill" ]; then
    echo "$ASSISTANT_STATE holds the data of the other stack; programs and images stay"
    return 0
  fi
  remove_operator_programs
  rm -rf "$ASSISTANT_STATE" /usr/local/lib/assistant
  rmdir /etc/assistant 2>/dev/null || echo "/etc/assistant keeps what you put there"
  docker_answers || return 0
  while read -r reference; do
    docker image rm "$reference" >/dev/null || echo "$reference is in use and stays"
  done < <(docker image ls 'assistant/*' --format '{{.Repository}}:{{.Tag}}')
  forget_pulled
}

again=deploy/up.sh
[ "$mode" != drill ] || again="deploy/up.sh --drill"
ui_plan 4 /var/log/assistant
step "tier-supervisor" down-supervisor stop_supervisor
step "Containers, networks, kernel table" down-stack take_away
step "The drill's internet" down-drill stop_drill
step "Files" down-files remove_files
if [ -n "$purge" ]; then
  say "The ${mode:-} stack and its data are gone. Compiled parts stay in $CACHE, logs in /var/log/assistant; remove them by hand if you like."
else
  say "The stack is down. Its data is kept; $again brings it back, deploy/down.sh --purge removes it."
fi
