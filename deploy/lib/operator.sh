# What lets the operator's commands work as printed: programs on the PATH, a context for `nats`. Sourced, never run.
#
# Owns: /usr/local/bin/{nats,grpcurl,tier-supervisor}, <home>/.config/nats/context/assistant.json and the files it names,
# $ASSISTANT_STATE/operators: who has such a context beside root.
# Does not: open control sockets (tier-supervisor does, with an ACL for the operator).
# shellcheck shell=bash

OPERATOR_PROGRAMS=(nats grpcurl)
OPERATOR_LINK=/usr/local/bin/tier-supervisor

install_operator_programs() {
  local name source
  for name in "${OPERATOR_PROGRAMS[@]}"; do
    case $name in nats) source=$TOOLS/$(tool_nats_cli)/bin/nats ;; *) source=$TOOLS/$(tool_grpcurl)/bin/grpcurl ;; esac
    if [ -e "/usr/local/bin/$name" ] && [ ! -f "$ASSISTANT_STATE/programs/$name" ] && ! cmp -s "$source" "/usr/local/bin/$name"; then
      echo "/usr/local/bin/$name was there before us and stays; if a printed command fails, remove it and run deploy/up.sh again"
      continue
    fi
    install_changed "$source" "/usr/local/bin/$name" 755 || continue
    install -d "$ASSISTANT_STATE/programs"
    : >"$ASSISTANT_STATE/programs/$name"
    echo "installed /usr/local/bin/$name"
  done
  # Of ours the one that people call by its name; whatever else has it stays.
  if [ ! -e "$OPERATOR_LINK" ] && [ ! -L "$OPERATOR_LINK" ]; then
    ln -s "$ASSISTANT_LIBEXEC/tier-supervisor" "$OPERATOR_LINK"
    echo "installed $OPERATOR_LINK"
  fi
}

# The nkey of `operator` may only subscribe: it opens a window, not a door. So each of the two users has a copy, and
# whoever was the operator before has none any more.
install_nats_context() { # <mode>
  local state=$ASSISTANT_STATE/$1
  forget_operators "$STACK_USER"
  write_nats_context "$state" root "$(getent passwd root | cut -d : -f 6)"
  if [ "$STACK_UID" -ne 0 ]; then
    printf '%s\n' "$STACK_USER" >"$ASSISTANT_STATE/operators"
    write_nats_context "$state" "$STACK_USER" "$STACK_HOME"
  fi
}

# Takes the context of every operator that there was, but one; an account that is gone has none.
forget_operators() { # [<name>]
  local name home
  [ -f "$ASSISTANT_STATE/operators" ] || return 0
  while IFS= read -r name; do
    home=$(getent passwd -- "$name" | cut -d : -f 6) || continue
    [ "$name" = "${1:-}" ] || [ ! -d "$home" ] || remove_nats_context "$name" "$home"
  done <"$ASSISTANT_STATE/operators"
  rm -f "$ASSISTANT_STATE/operators"
}

write_nats_context() { # <state directory> <user> <home>
  local config=$3/.config directory owner group
  directory=$config/nats/context
  owner=$(id -u "$2")
  group=$(id -g "$2")
  # As the user: nothing of ours follows a link in a home as root.
  # shellcheck disable=SC2016
  setpriv --reuid "$owner" --regid "$group" --init-groups sh -c 'umask 077 && mkdir -p "$1"' sh "$directory"
  user_file "$owner" "$group" "$directory/assistant.nk" <"$1/nkeys/operator.nk"
  user_file "$owner" "$group" "$directory/assistant-ca.pem" <"$1/pki/internal-ca.pem"
  jq -n --arg dir "$directory" '{description: "Secure assistant stack: subscribe only", url: "tls://localhost:4222",
    ca: "\($dir)/assistant-ca.pem", nkey: "\($dir)/assistant.nk", inbox_prefix: "_INBOX_operator"}' |
    user_file "$owner" "$group" "$directory/assistant.json"
  # A bare `nats` uses the selected context. Another choice of the user's is kept for deploy/down.sh --purge.
  if [ -s "$config/nats/context.txt" ] && [ "$(cat "$config/nats/context.txt")" != assistant ]; then
    user_file "$owner" "$group" "$config/nats/context.before-assistant.txt" <"$config/nats/context.txt"
  fi
  printf 'assistant' | user_file "$owner" "$group" "$config/nats/context.txt"
}

user_file() { # <uid> <gid> <path>, content on standard input
  # shellcheck disable=SC2016
  setpriv --reuid "$1" --regid "$2" --init-groups sh -c 'umask 077 && cat >"$1.new" && mv -f "$1.new" "$1"' sh "$3"
}

remove_operator_programs() {
  local name
  for name in "${OPERATOR_PROGRAMS[@]}"; do
    [ ! -f "$ASSISTANT_STATE/programs/$name" ] || rm -f "/usr/local/bin/$name"
  done
  [ "$(readlink "$OPERATOR_LINK" 2>/dev/null)" != "$ASSISTANT_LIBEXEC/tier-supervisor" ] || rm -f "$OPERATOR_LINK"
}

remove_operator_context() {
  remove_nats_context root "$(getent passwd root | cut -d : -f 6)"
  forget_operators
}

remove_nats_context() { # <user> <home>
  # shellcheck disable=SC2016
  setpriv --reuid "$(id -u "$1")" --regid "$(id -g "$1")" --init-groups sh -c '
    cd "$1/.config/nats" 2>/dev/null || exit 0
    rm -f context/assistant.json context/assistant.nk context/assistant-ca.pem
    if [ "$(cat context.txt 2>/dev/null)" = assistant ]; then
      rm -f context.txt
      if [ -f context.before-assistant.txt ]; then mv -f context.before-assistant.txt context.txt; fi
    fi' sh "$2"
}
