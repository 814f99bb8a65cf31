# The Docker engine: running, answering, and started by us only where nothing else runs it. Sourced, never run.
#
# Owns: starting dockerd. Does not: stop it (other people's containers may depend on it), or configure it.
# shellcheck shell=bash

docker_answers() { timeout 10 docker version --format '{{.Server.Version}}' >/dev/null 2>&1; }

# A pid file whose process is gone, or is something else by now, keeps dockerd or its containerd from starting.
forget_stale_pid() { # <pid file> <process name>
  local pid
  [ -f "$1" ] || return 0
  pid=$(cat "$1" 2>/dev/null || true)
  if [ -n "$pid" ] && [ "$(cat "/proc/$pid/comm" 2>/dev/null || true)" = "$2" ]; then return 0; fi
  echo "removing $1, left behind by a process that has ended"
  rm -f "$1"
}

start_plain_dockerd() {
  local log=$ASSISTANT_LOG_DIR/dockerd.log
  # No cgroups, no containers: on a machine without systemd nobody may have mounted them.
  if ! mountpoint -q /sys/fs/cgroup && [ ! -d /sys/fs/cgroup/memory ]; then
    mount -t cgroup2 none /sys/fs/cgroup || echo "mounting cgroups failed; dockerd will say more"
  fi
  forget_stale_pid /var/run/docker.pid dockerd
  forget_stale_pid /run/docker/containerd/containerd.pid containerd
  [ ! -f "$log" ] || mv -f "$log" "$log.1"
  # A session of its own: neither the end of this script nor an interrupt at the terminal ends the engine.
  (forget_descriptors && exec setsid nohup dockerd >"$log" 2>&1 </dev/null) &
  local pid=$! waited=0
  while ! docker_answers; do
    if ! kill -0 "$pid" 2>/dev/null; then
      tail -n 20 "$log"
      die "Docker was started and ended at once." \
        "Read $log. In a container this needs the capabilities SYS_ADMIN and NET_ADMIN; on a VM a reboot often helps after a kernel update."
    fi
    waited=$((waited + 1))
    [ "$waited" -lt 180 ] || die "Docker was started but does not answer after 90 seconds." "Read $log, then run the same command again."
    sleep 0.5
  done
}

# Somebody started it; it is on its way up, or it hangs. A second one beside it would only fail.
await_busy_dockerd() {
  local waited=0
  until docker_answers; do
    waited=$((waited + 1))
    [ "$waited" -lt 60 ] || die "Docker runs (process $(cat /var/run/docker.pid)) but does not answer." \
      "End that process (kill $(cat /var/run/docker.pid)), then run the same command again; it starts Docker anew."
    sleep 0.5
  done
}

ensure_docker() {
  if docker_answers; then
    docker version --format 'engine {{.Server.Version}}'
    return 0
  fi
  if [ -n "${DOCKER_HOST:-}" ]; then
    die "DOCKER_HOST is set to $DOCKER_HOST and nothing answers there." \
      "The stack needs the engine of this machine: unset DOCKER_HOST and run the same command again."
  fi
  command -v dockerd >/dev/null 2>&1 || die "There is no Docker engine on this machine, and installing it did not work." \
    "Install docker.io or docker-ce by hand, then run the same command again."
  if has_systemd; then
    systemctl start docker || true
    local waited=0
    while ! docker_answers; do
      waited=$((waited + 1))
      [ "$waited" -lt 180 ] || die "Docker does not answer; systemd could not start it." "Read: journalctl -u docker -n 50"
      sleep 0.5
    done
  elif [ -f /var/run/docker.pid ] && [ "$(cat "/proc/$(cat /var/run/docker.pid)/comm" 2>/dev/null || true)" = dockerd ]; then
    await_busy_dockerd
  else
    start_plain_dockerd
  fi
  docker version --format 'engine {{.Server.Version}}'
  case $(awk '/^CapBnd/ { print $2 }' /proc/self/status) in
    *[!0]*) (( 0x$(awk '/^CapBnd/ { print $2 }' /proc/self/status) & (1 << 24) )) ||
      echo "note: this machine lacks CAP_SYS_RESOURCE; privileged containers will not start here, and the stack uses none" ;;
  esac
}
