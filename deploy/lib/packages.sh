# Debian packages that the stack needs on the machine itself. Sourced, never run.
#
# Owns: apt. Does not: start what it installs, or upgrade what is there.
# shellcheck shell=bash

# What each is for: nftables kernel table; iproute2, iptables Docker and the drill's routes; mmdebstrap the base images;
# jq settings; acl the operator's access to control sockets; gcc and friends the Rust builds;
# python3-pip MCP servers; curl and ca-certificates downloads.
MACHINE_PACKAGES=(ca-certificates curl iproute2 iptables nftables mmdebstrap jq acl python3 python3-pip
  gcc g++ libc6-dev make pkg-config util-linux procps)

package_installed() { # <package>
  [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

apt_quiet() {
  DEBIAN_FRONTEND=noninteractive NEEDRESTART_MODE=a apt-get -y -q -o DPkg::Lock::Timeout=300 \
    -o Dpkg::Options::=--force-confold "$@"
}

# Prints the packages of the arguments that are not installed.
missing_packages() { # <package>...
  local package
  for package in "$@"; do
    package_installed "$package" || printf '%s\n' "$package"
  done
}

install_packages() { # <package>...
  local missing
  mapfile -t missing < <(missing_packages "$@")
  if [ "${#missing[@]}" -eq 0 ]; then
    echo "nothing is missing"
    return 0
  fi
  echo "missing: ${missing[*]}"
  # One broken third-party source must not stop us: whether the packages are to be had is decided by the install.
  apt_quiet update || echo "apt-get update had errors; trying to install all the same"
  apt_quiet install --no-install-recommends "${missing[@]}"
}

install_machine_packages() {
  local wanted=("${MACHINE_PACKAGES[@]}")
  # Docker's own packages serve as well as Debian's; installing one over the other would fight.
  command -v dockerd >/dev/null 2>&1 || wanted+=(docker.io)
  install_packages "${wanted[@]}"
  # From Debian 13 on the client is a package of its own.
  command -v docker >/dev/null 2>&1 || install_packages docker-cli
}
