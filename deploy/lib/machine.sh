# The machine and the person: who runs us, where things are kept, whether this is a machine we know. Sourced, never run.
#
# Owns: becoming root, the operator's name and home, the cache directory, running a command as the operator.
# Does not: install or start anything.
# shellcheck shell=bash

ASSISTANT_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
ASSISTANT_STATE=/var/lib/assistant
ASSISTANT_LIBEXEC=/usr/local/lib/assistant/bin
ASSISTANT_SETTINGS=/etc/assistant/supervisor.json
# Read by the scripts that source this file.
export ASSISTANT_ROOT ASSISTANT_STATE ASSISTANT_LIBEXEC ASSISTANT_SETTINGS

# sudo empties the environment; these say how this machine reaches the network and where its toolchains are.
MACHINE_VARIABLES=(XDG_CACHE_HOME CARGO_HOME RUSTUP_HOME RUSTUP_TOOLCHAIN GOPATH GOPROXY GOSUMDB GONOSUMDB GOFLAGS
  HTTP_PROXY HTTPS_PROXY NO_PROXY http_proxy https_proxy no_proxy SSL_CERT_FILE SSL_CERT_DIR CURL_CA_BUNDLE
  NODE_EXTRA_CA_CERTS REQUESTS_CA_BUNDLE PIP_CERT PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_FIND_LINKS PIP_DEFAULT_TIMEOUT ASSISTANT_IMAGES ASSISTANT_ENV_FILE TERM)

# The PATH of a person who is not root lacks these on Debian, and sudo is given the person's, for the toolchains on it. Last,
# so that nothing of the person's choice changes.
for _directory in /usr/local/sbin /usr/sbin /sbin; do
  case :$PATH: in *:$_directory:*) ;; *) PATH=$PATH:$_directory ;; esac
done
unset _directory
export PATH

# Runs the same script again as root, with the few variables that matter. Returns at once for root.
become_root() { # <script> <arguments>...
  [ "$(id -u)" -ne 0 ] || return 0
  command -v sudo >/dev/null 2>&1 || die "This needs root, and there is no sudo on this machine." "Run it as root: su -c '$1'"
  sudo -n true 2>/dev/null || { : </dev/tty; } 2>/dev/null ||
    die "This needs root, and sudo asks for a password that nobody can type here." "Run it in a terminal, or as root."
  local keep=(PATH="$PATH") name
  for name in "${MACHINE_VARIABLES[@]}"; do
    [ -z "${!name:-}" ] || keep+=("$name=${!name}")
  done
  exec sudo -- env "${keep[@]}" bash "$@"
}

# Sets OPERATOR, OPERATOR_UID, OPERATOR_GID, OPERATOR_HOME, CACHE: the person who called, not root behind sudo.
find_operator() {
  local name=${SUDO_USER:-} entry
  [ -n "$name" ] && [ "$(id -u)" -eq 0 ] || name=$(id -un)
  entry=$(getent passwd "$name") || die "The user $name is not known on this machine." "Run the script as a user that has an account."
  IFS=: read -r OPERATOR _ OPERATOR_UID OPERATOR_GID _ OPERATOR_HOME _ <<<"$entry"
  CACHE=${XDG_CACHE_HOME:-$OPERATOR_HOME/.cache}/secure-assistant-stack
  TOOLS=$CACHE/tools
  RUST_TARGET=$CACHE/target
  RUST_BIN=$RUST_TARGET/ci
  export OPERATOR OPERATOR_UID OPERATOR_GID OPERATOR_HOME CACHE TOOLS RUST_TARGET RUST_BIN
}

# Sets STACK_USER, STACK_UID, STACK_HOME: who uses the stack's commands without sudo. The caller, unless another was named.
find_stack_user() { # [<name>]
  local entry
  STACK_USER=$OPERATOR STACK_UID=$OPERATOR_UID STACK_HOME=$OPERATOR_HOME
  if [ -n "${1:-}" ]; then
    entry=$(getent passwd -- "$1") || die "There is no user '$(printf '%s' "$1" | ui_harmless)' on this machine." \
      "Name one that has an account here; without --operator it is $OPERATOR."
    IFS=: read -r STACK_USER _ STACK_UID _ _ STACK_HOME _ <<<"$entry"
  fi
  export STACK_USER STACK_UID STACK_HOME
}

# Builds run code from package registries: as the operator, not as root, whenever the two differ.
as_operator() { # <command>...
  if [ "$(id -u)" -eq "$OPERATOR_UID" ]; then
    HOME=$OPERATOR_HOME "$@"
  else
    setpriv --reuid "$OPERATOR_UID" --regid "$OPERATOR_GID" --init-groups \
      env HOME="$OPERATOR_HOME" USER="$OPERATOR" LOGNAME="$OPERATOR" "$@"
  fi
}

has_systemd() { [ -d /run/systemd/system ]; }

# Sets MACHINE_CODENAME and MACHINE_ARCH.
check_machine() {
  local id='' like='' codename=''
  if [ -r /etc/os-release ]; then
    # shellcheck disable=SC1091
    id=$(. /etc/os-release && printf '%s' "${ID:-}")
    # shellcheck disable=SC1091
    like=$(. /etc/os-release && printf '%s' "${ID_LIKE:-}")
    # shellcheck disable=SC1091
    codename=$(. /etc/os-release && printf '%s' "${VERSION_CODENAME:-}")
  fi
  case " $id $like " in
    *' debian '* | *' ubuntu '*) ;;
    *) die "This machine is not Debian or Ubuntu (/etc/os-release says '${id:-nothing}')." \
      "Use a Debian 12+ or Ubuntu 22.04+ machine; a small VM is enough." ;;
  esac
  [ -n "$codename" ] || die "/etc/os-release names no VERSION_CODENAME, so the base image's release is unknown." \
    "Use a released Debian or Ubuntu, not a testing snapshot."
  MACHINE_CODENAME=$codename
  MACHINE_ARCH=$(dpkg --print-architecture)
  case $MACHINE_ARCH in
    amd64 | arm64) ;;
    *) die "This machine's architecture is $MACHINE_ARCH; the stack is built for amd64 and arm64." "Use a machine of one of these two." ;;
  esac
  export MACHINE_CODENAME MACHINE_ARCH
}

# Fails with a sentence when a filesystem has too little room, before a build finds out in its middle.
need_space() { # <directory> <GiB> <what for>
  local directory=$1 free
  while [ ! -d "$directory" ]; do directory=$(dirname "$directory"); done
  free=$(df -P -k "$directory" | awk 'NR == 2 { print int($4 / 1048576) }')
  [ "$free" -ge "$2" ] || die "$1 has $free GiB free; $3 need about $2 GiB." \
    "Free some space on that filesystem (df -h $directory), or put the cache elsewhere with XDG_CACHE_HOME."
}

# Twelve hex digits over what an artefact is made of.
short_hash() { sha256sum | cut -c 1-12; }

# Puts a file in place only when its content differs; says by its status whether it did (0 changed, 1 the same).
install_changed() { # <source> <target> <mode>
  if [ -f "$2" ] && cmp -s "$1" "$2"; then return 1; fi
  mkdir -p "$(dirname "$2")"
  install -m "$3" "$1" "$2.new"
  mv -f "$2.new" "$2"
}
