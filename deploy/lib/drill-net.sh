#!/usr/bin/env bash
# The drill's internet as a place: a network namespace in which every address is local, behind a routed veth.
#
#   drill-net.sh up     makes it, or mends what is left of it; safe to repeat while doubles run in it
#   drill-net.sh down   removes it and the rules that lead to it; safe to repeat
#
# Owns: the namespace assistant-drill, the veth as-drill0 (VM) - as-drill1 (namespace), and two ACCEPT rules for it in
# Docker's chain for the owner of the machine. Does not: lead anything into it (tier-supervisor claims the routes, and the
# kernel table decides who gets out), or run the doubles.
set -euo pipefail

NETNS=assistant-drill
VM_END=as-drill0
DRILL_END=as-drill1
VM_ADDRESS=198.51.100.2
DRILL_ADDRESS=198.51.100.1
# Of tier-supervisor's policy rules; see services/tier-supervisor/src/routes.rs.
RULE_PRIORITY=87
DRILL_TABLE=8787
# Every pool that tier-supervisor may choose, for the way back; see services/tier-supervisor/src/addresses.rs.
POOLS=(10.87.0.0/16 10.213.0.0/16 10.164.0.0/16 10.239.0.0/16 172.29.0.0/16 172.27.0.0/16 10.51.0.0/16)
COMMENT=assistant-drill

fail() { # <what> <what to do>
  printf 'Error: %s\nWhat to do: %s\n' "$1" "$2" >&2
  exit 1
}

inside() { ip netns exec "$NETNS" "$@"; }

# A kernel setting, where the kernel has it.
setting() { # <path below /proc/sys> <value>
  if [ -e "/proc/sys/$1" ]; then printf '%s\n' "$2" >"/proc/sys/$1"; fi
}

has_namespace() { inside true 2>/dev/null; }

# Both ends, joined to each other: a veth's end shows the index of the other one.
has_veth() {
  local here there
  here=$(ip -o link show dev "$VM_END" 2>/dev/null) || return 1
  there=$(ip -n "$NETNS" -o link show dev "$DRILL_END" 2>/dev/null) || return 1
  [[ $here =~ ^([0-9]+):\ $VM_END@if([0-9]+): ]] || return 1
  local own=${BASH_REMATCH[1]} peer=${BASH_REMATCH[2]}
  [[ $there == "$peer: $DRILL_END@if$own:"* ]]
}

# Docker never touches the rules in DOCKER-USER, and asks them before its own.
chain() {
  if iptables -w -n -L DOCKER-USER >/dev/null 2>&1; then echo DOCKER-USER; else echo FORWARD; fi
}

# What is accepted here has passed the kernel table first. Without these, Docker's policy DROP would stop what a broken wall
# lets out, and the drill would show walls that do not stand.
rules() { # calls "$@" with the arguments of each rule
  "$@" -o "$VM_END" -m comment --comment "$COMMENT" -j ACCEPT
  "$@" -i "$VM_END" -m conntrack --ctstate ESTABLISHED,RELATED -m comment --comment "$COMMENT" -j ACCEPT
}

accept() {
  iptables -w -C "$CHAIN" "$@" 2>/dev/null || iptables -w -I "$CHAIN" 1 "$@"
}

unaccept() {
  local name
  for name in DOCKER-USER FORWARD; do
    while iptables -w -D "$name" "$@" 2>/dev/null; do :; done
  done
}

up() {
  [ "$(id -u)" = 0 ] || fail "drill-net.sh needs root" "run it with sudo; deploy/up.sh --drill does"
  command -v ip >/dev/null || fail "ip is not installed" "run deploy/up.sh, which installs iproute2"
  command -v iptables >/dev/null || fail "iptables is not installed" "run deploy/up.sh, which installs it"

  if ! has_namespace; then
    # A leftover that is no namespace any more.
    ip netns delete "$NETNS" 2>/dev/null || rm -f "/run/netns/$NETNS"
    ip netns add "$NETNS" ||
      fail "the network namespace $NETNS cannot be made" "run this outside of any container, as root"
  fi
  # shellcheck disable=SC2016  # expanded inside
  inside sh -c 'for each in all default; do
    path=/proc/sys/net/ipv6/conf/$each/disable_ipv6; [ ! -e "$path" ] || echo 1 >"$path"
    echo 0 >/proc/sys/net/ipv4/conf/$each/rp_filter
  done'

  if ! has_veth; then
    ip link delete "$VM_END" 2>/dev/null || true
    ip -n "$NETNS" link delete "$DRILL_END" 2>/dev/null || true
    ip link add "$VM_END" type veth peer name "$DRILL_END" netns "$NETNS"
  fi
  setting "net/ipv6/conf/$VM_END/disable_ipv6" 1
  # Loose: what comes back has source addresses that the VM's main table leads elsewhere.
  setting "net/ipv4/conf/$VM_END/rp_filter" 2
  setting net/ipv4/ip_forward 1
  ip address replace "$VM_ADDRESS/30" dev "$VM_END"
  ip link set "$VM_END" up
  ip -n "$NETNS" address replace "$DRILL_ADDRESS/30" dev "$DRILL_END"
  ip -n "$NETNS" link set lo up
  ip -n "$NETNS" link set "$DRILL_END" up
  # Every address is here. The way back is more specific; without policy rules in the namespace, that decides.
  ip -n "$NETNS" route replace local 0.0.0.0/0 dev lo
  local pool
  for pool in "${POOLS[@]}"; do
    ip -n "$NETNS" route replace "$pool" via "$VM_ADDRESS" dev "$DRILL_END"
  done

  CHAIN=$(chain)
  rules accept

  local way
  way=$(ip route get "$DRILL_ADDRESS" 2>&1) || way=
  [[ $way == *"dev $VM_END"* ]] ||
    fail "$DRILL_ADDRESS is not reached over $VM_END" "another network of this machine uses 198.51.100.0/30 (ip route get $DRILL_ADDRESS); remove it for the drill"
}

down() {
  # What still leads into it would otherwise be led into nothing.
  while ip rule delete priority "$RULE_PRIORITY" lookup "$DRILL_TABLE" 2>/dev/null; do :; done
  ip route flush table "$DRILL_TABLE" 2>/dev/null || true
  if command -v iptables >/dev/null; then rules unaccept; fi
  ip link delete "$VM_END" 2>/dev/null || true
  if [ -e "/run/netns/$NETNS" ]; then
    ip netns delete "$NETNS" 2>/dev/null || rm -f "/run/netns/$NETNS"
  fi
}

case ${1:-} in
  up) up ;;
  down) down ;;
  *) fail "usage: drill-net.sh up|down" "say which" ;;
esac
