# Long-running programs of the VM: a systemd unit where there is systemd, else respawn.sh. Sourced, never run.
#
# Owns: assistant-<name>.service, /run/assistant-daemons, their start, restart on change, and stop.
# Does not: know what the programs do. Containers are tier-supervisor's.
# shellcheck shell=bash

DAEMON_RUN=/run/assistant-daemons

# What outlives the script must not hold what its caller had open: a lock, the other end of a pipe. Standard streams are
# the command's own affair, and 255 is the shell's.
forget_descriptors() {
  local each
  for each in "/proc/$BASHPID/fd"/*; do
    each=${each##*/}
    case $each in 0 | 1 | 2 | 255 | '*') ;; *) eval "exec $each>&-" ;; esac
  done
}

daemon_pid() { # <name>: the respawn loop's process, if it is one
  local pid
  pid=$(cat "$DAEMON_RUN/$1.pid" 2>/dev/null) || return 1
  [ -n "$pid" ] && tr '\0' '\n' <"/proc/$pid/cmdline" 2>/dev/null | grep -qx "$1" || return 1
  printf '%s\n' "$pid"
}

daemon_running() { # <name>
  if has_systemd; then systemctl is-active --quiet "assistant-$1.service"; else daemon_pid "$1" >/dev/null; fi
}

# Where a person reads what it says.
daemon_log() { # <name>
  if has_systemd; then printf 'journalctl -u assistant-%s' "$1"; else printf '%s/%s.log' "$ASSISTANT_LOG_DIR" "$1"; fi
}

daemon_tail() { # <name>
  if has_systemd; then journalctl -u "assistant-$1" -n 15 -o cat --no-pager; else tail -n 15 "$ASSISTANT_LOG_DIR/$1.log"; fi
}

# Starts it, or restarts it when what it is made of has changed. Leaves it alone otherwise.
daemon_ensure() { # <name> <fingerprint> <whether it starts at boot: boot|session> <command>...
  local name=$1 fingerprint=$2 boot=$3 stamp=$ASSISTANT_STATE/daemons/$1
  shift 3
  fingerprint=$(printf '%s\n' "$fingerprint" "$@" | short_hash)
  if daemon_running "$name" && [ "$(cat "$stamp" 2>/dev/null)" = "$fingerprint" ]; then
    echo "$name runs and has not changed"
    return 0
  fi
  daemon_stop "$name"
  mkdir -p "$(dirname "$stamp")"
  if has_systemd; then
    write_unit "$name" "$@"
    systemctl daemon-reload
    if [ "$boot" = boot ]; then systemctl enable --quiet "assistant-$name.service"; fi
    systemctl start "assistant-$name.service"
  else
    mkdir -p "$DAEMON_RUN"
    install_changed "$ASSISTANT_ROOT/deploy/lib/respawn.sh" "$ASSISTANT_LIBEXEC/respawn.sh" 755 || true
    (forget_descriptors && exec setsid "$ASSISTANT_LIBEXEC/respawn.sh" "$name" "$@" >/dev/null 2>&1 </dev/null) &
    local waited=0
    until daemon_running "$name"; do
      waited=$((waited + 1))
      [ "$waited" -lt 100 ] || die "$name could not be started." "Read $(daemon_log "$name")."
      sleep 0.1
    done
  fi
  printf '%s\n' "$fingerprint" >"$stamp"
  echo "$name started"
}

write_unit() { # <name> <command>...
  local name=$1 argument line=
  shift
  for argument in "$@"; do
    # systemd's own quoting: percent and dollar signs are special even in quotes.
    argument=${argument//\\/\\\\}
    argument=${argument//\"/\\\"}
    argument=${argument//%/%%}
    argument=${argument//\$/\$\$}
    line+="\"$argument\" "
  done
  cat >"/etc/systemd/system/assistant-$name.service" <<UNIT
# Written by deploy/up.sh.
[Unit]
Description=Secure assistant stack: $name
After=docker.service network-online.target
Wants=docker.service network-online.target
# Never give up: a stack that stays down is worse than a line in the journal every two seconds.
StartLimitIntervalSec=0

[Service]
ExecStart=$line
Restart=always
RestartSec=2
TimeoutStopSec=45
KillMode=mixed

[Install]
WantedBy=multi-user.target
UNIT
}

daemon_stop() { # <name>
  local pid child waited=0
  rm -f "$ASSISTANT_STATE/daemons/$1"
  if has_systemd; then
    systemctl disable --now --quiet "assistant-$1.service" 2>/dev/null || true
    rm -f "/etc/systemd/system/assistant-$1.service"
    return 0
  fi
  pid=$(daemon_pid "$1") || return 0
  child=$(cat "$DAEMON_RUN/$1.child" 2>/dev/null || true)
  kill -TERM "$pid" 2>/dev/null || true
  while kill -0 "$pid" 2>/dev/null; do
    waited=$((waited + 1))
    if [ "$waited" -eq 450 ]; then
      echo "$1 did not end within 45 seconds and is killed"
      kill -KILL "$pid" ${child:+"$child"} 2>/dev/null || true
    fi
    sleep 0.1
  done
}
