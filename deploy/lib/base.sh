# Base images: root filesystems of the machine's own release, bootstrapped from the machine's own package sources.
# Sourced, never run.
#
# Owns: assistant/base*:<hash>. Does not: write any mirror, certificate or key of the machine into an image.
# shellcheck shell=bash

# What a root filesystem of each flavour holds beyond the essential packages (which bring bash and coreutils, not apt).
flavour_packages() { # <flavour>
  case $1 in
    plain) echo ca-certificates ;;
    agent) echo ca-certificates,curl ;;
    squid) echo ca-certificates,squid-openssl ;;
    python) echo ca-certificates,libstdc++6,python3 ;;
    prometheus) echo ca-certificates,prometheus ;;
    sandbox) echo ca-certificates,curl,gh,git,jq,less,nodejs,npm,openssh-client,procps,python3,python3-pip,python3-venv,ripgrep,unzip,xz-utils,zip ;;
    sandbox-daemon) echo ca-certificates,curl,docker.io,jq,libcap2-bin,rootlesskit,uidmap ;;
    probe) echo ca-certificates,curl,iproute2,iputils-ping,netcat-openbsd,python3 ;;
    toolchain) echo ca-certificates,gcc,g++,libc6-dev,make,pkg-config ;;
    *) die "There is no base image '$1'." "This is a mistake in deploy/lib; please report it." ;;
  esac
}

# One-line entries of the machine's active sources of its own release, so that mirrors and proxies keep working.
machine_sources() {
  local id keyring signed=''
  # shellcheck disable=SC1091
  id=$(. /etc/os-release && printf '%s' "$ID")
  for keyring in "/usr/share/keyrings/$id-archive-keyring.gpg" "/usr/share/keyrings/$id-keyring.gpg"; do
    if [ -f "$keyring" ]; then signed="[signed-by=$keyring] "; break; fi
  done
  # shellcheck disable=SC2016
  apt-get indextargets --format '$(ORIGIN)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)' 'Created-By: Packages' |
    awk -F'|' -v signed="$signed" -v release="$MACHINE_CODENAME" '
      ($1 == "Debian" || $1 == "Ubuntu") && ($3 == release || index($3, release "-") == 1) && $3 !~ /backports|proposed/ && $2 ~ /^https?:/ {
        line = "deb " signed $2 " " $3 " " $4
        if (!seen[line]++) print line
      }'
}

# Makes a tar of a root filesystem.
bootstrap() { # <tar> <packages, comma separated>
  local sources option arguments=() release=${MACHINE_CODENAME}
  sources=$(machine_sources)
  if [ -z "$sources" ]; then
    # The lists were never fetched, or were cleaned away.
    apt_quiet update
    sources=$(machine_sources)
  fi
  [ -n "$sources" ] || die "The machine's package sources name no $release archive of Debian or Ubuntu." \
    "Add the distribution's own archive to /etc/apt/sources.list* and run apt-get update."
  while IFS= read -r option; do
    arguments+=(--aptopt="$option")
  done < <(apt-config dump | grep -E '^Acquire::(Check-Valid-Until|Check-Date|Retries|https?::|ForceIPv4)' | grep -v '""' || true)
  # setuid bits are of no use in containers with no-new-privileges; man pages and the like are of no use at all.
  # shellcheck disable=SC2016
  mmdebstrap --variant=essential --format=tar --include="$2" --aptopt='APT::Install-Recommends "false"' "${arguments[@]}" \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/info/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-include=/usr/share/doc/*/copyright' \
    --customize-hook="sh '$ASSISTANT_ROOT/deploy/lib/base-finish.sh' \"\$1\"" \
    "$release" "$1" - <<<"$sources" ||
    die "The base image could not be bootstrapped from the machine's package sources." \
      "Check that 'apt-get update' works, then run the same command again."
}

base_image() { # <flavour>
  local generation=0
  [ ! -f "$ASSISTANT_STATE/base-generation" ] || generation=$(cat "$ASSISTANT_STATE/base-generation")
  printf 'assistant/base%s:%s' "$([ "$1" = plain ] || printf -- '-%s' "$1")" "$({
    printf '%s\n' "$MACHINE_CODENAME" "$MACHINE_ARCH" "$generation" "$(flavour_packages "$1")"
    cat "$ASSISTANT_ROOT/deploy/lib/base-finish.sh"
  } | short_hash)"
}

build_base() { # <flavour>
  local image tar
  image=$(base_image "$1")
  if docker image inspect "$image" >/dev/null 2>&1; then
    echo "$image is there"
    return 0
  fi
  tar=$(mktemp "$ASSISTANT_STATE/base.XXXXXX")
  # shellcheck disable=SC2064
  trap "rm -f '$tar'" EXIT
  bootstrap "$tar" "$(flavour_packages "$1")"
  docker import --change "LABEL org.opencontainers.image.title=assistant-base-$1" \
    --change "LABEL org.opencontainers.image.ref.name=$MACHINE_CODENAME" \
    --change 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' \
    --change 'ENV LANG=C.UTF-8' "$tar" "$image"
  rm -f "$tar"
}
