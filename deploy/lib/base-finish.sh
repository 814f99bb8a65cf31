#!/bin/sh
# Last touch on a bootstrapped root filesystem, run by mmdebstrap: sh base-finish.sh <root>
#
# Adds the users that our containers run as; takes away what belongs to the machine that built it, and setuid bits.
set -eu
root=$1

user() { # <name> <uid>
  printf '%s:x:%s:8700::/nonexistent:/usr/sbin/nologin\n' "$1" "$2" >>"$root/etc/passwd"
}
printf 'assistant:x:8700:\n' >>"$root/etc/group"
user secret-broker 8701
user egress-auditor 8702
user channel-bridge 8703
user assistant-squid 8704
user assistant-nats 8705
user assistant-jaeger 8706
user otel-collector 8707
user assistant-prometheus 8708
user assistant-grafana 8709
user mcp-server 8710
user assistant-litellm 8711
user assistant-tee 8712
user assistant-gates 8713

rm -rf "$root"/etc/apt/sources.list "$root"/etc/apt/sources.list.d/* "$root"/etc/apt/apt.conf.d/99mmdebstrap \
  "$root"/etc/dpkg/dpkg.cfg.d/99mmdebstrap "$root"/etc/resolv.conf "$root"/etc/hostname "$root"/var/lib/apt/lists/* \
  "$root"/var/cache/apt/* "$root"/var/cache/debconf/*-old "$root"/var/lib/dpkg/*-old "$root"/var/log/*
find "$root" -xdev -type f -perm /6000 -exec chmod ug-s {} +
# A rootless daemon runs as nobody and shares out a range of users by these two: each gets the one capability it needs in
# place of root's powers.
if [ -x "$root/usr/bin/newuidmap" ]; then
  chroot "$root" setcap cap_setuid+ep /usr/bin/newuidmap
  chroot "$root" setcap cap_setgid+ep /usr/bin/newgidmap
  printf 'nobody:100000:65536\n' | tee "$root/etc/subuid" >"$root/etc/subgid"
fi
mkdir -p "$root/etc/assistant" "$root/run/assistant" "$root/var/lib/assistant" "$root/usr/lib/assistant"
