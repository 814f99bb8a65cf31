# Compilers: the machine's own where they are new enough, otherwise pinned ones that touch nothing outside our cache.
# Sourced, never run.
#
# Owns: finding cargo and Go, the pinned Rust toolchain image, the pinned Go toolchain. Does not: build anything of ours.
# shellcheck shell=bash

# The pinned toolchains, with the SHA-256 that the Rust release manifest of 2026-04-16 names for each archive.
PINNED_RUST=1.95.0
PINNED_RUST_DATE=2026-04-16
declare -A PINNED_RUST_SHA256=(
  [rustc-amd64]=8426a3d170a5879f5682f5fbdd024a1779b3951e7baba685af2d6dc32a6dfc15
  [cargo-amd64]=e74edd2cf7d0f1f1383b4f00eb90c843750bc489e2ccf7214e6476678a907425
  [rust-std-amd64]=047ea7098803d3500fa1072e9cee5392697e21525559e4458128a2bf874aa382
  [rustc-arm64]=0fe3689eeaed603e5ef24572d11597d3edadaefd2cb181674ad621260f2501d2
  [cargo-arm64]=7c070aeba9bbf12073646995a03f36c346bb5f541d0078ba6d9dc2a7adaaf6af
  [rust-std-arm64]=3a21b271b1ff973b94d69b25e7a39992f9fbcae1ab6d9475844a23e6ad3908ac
)
# Checked by Go itself against its checksum database.
PINNED_GO=1.26.8
# From this version on, Go fetches a newer toolchain by itself where a module asks for one.
GO_SWITCHES_SINCE=1.21

version_at_least() { # <version> <minimum>
  [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]
}

wanted_rust() { sed -n 's/^rust-version = "\(.*\)"$/\1/p' "$ASSISTANT_ROOT/Cargo.toml"; }

# sudo's PATH lacks the places where toolchains are installed for one user.
toolchain_path() {
  printf '%s' "${CARGO_HOME:-$OPERATOR_HOME/.cargo}/bin:$OPERATOR_HOME/go/bin:/usr/local/cargo/bin:/usr/local/go/bin:$PATH"
}

# Prints the version of the machine's Rust when it is new enough for us; fails otherwise.
machine_rust() {
  local version
  version=$(cd "$ASSISTANT_ROOT" && as_operator env PATH="$(toolchain_path)" rustc --version 2>/dev/null) || return 1
  as_operator env PATH="$(toolchain_path)" cargo --version >/dev/null 2>&1 || return 1
  version_at_least "$(awk '{ print $2 }' <<<"$version")" "$(wanted_rust)" || return 1
  printf '%s\n' "$version"
}

rust_image() { printf 'assistant/toolchain:%s' "$(printf '%s' "$PINNED_RUST $MACHINE_CODENAME $MACHINE_ARCH 1" | short_hash)"; }

# An image of the machine's own release with the pinned Rust: what it builds runs on the machine and in its containers.
build_rust_image() {
  local image triple part sha file work
  image=$(rust_image)
  if docker image inspect "$image" >/dev/null 2>&1; then return 0; fi
  case $MACHINE_ARCH in amd64) triple=x86_64-unknown-linux-gnu ;; *) triple=aarch64-unknown-linux-gnu ;; esac
  work=$(mktemp -d "$CACHE/toolchain.XXXXXX")
  # shellcheck disable=SC2064
  trap "rm -rf '$work'" EXIT
  mkdir -p "$work/rust"
  for part in rustc cargo rust-std; do
    sha=${PINNED_RUST_SHA256[$part-$MACHINE_ARCH]}
    file=$part-$PINNED_RUST-$triple.tar.xz
    curl -fsSL --retry 3 -o "$work/$file" "https://static.rust-lang.org/dist/$PINNED_RUST_DATE/$file" ||
      die "This machine has no Rust $(wanted_rust) or newer, and the pinned one cannot be downloaded." \
        "Install Rust $(wanted_rust) or newer for $OPERATOR (cargo and rustc on the PATH), or give this machine a way to static.rust-lang.org."
    printf '%s  %s\n' "$sha" "$work/$file" | sha256sum -c --quiet - ||
      die "The downloaded $file is not the pinned one (its SHA-256 differs)." "Do not use it; check what stands between this machine and static.rust-lang.org."
    tar -xJf "$work/$file" -C "$work" --no-same-owner
    "$work/$part-$PINNED_RUST-$triple/install.sh" --prefix="$work/rust" --disable-ldconfig >/dev/null
  done
  bootstrap "$work/root.tar" "$(flavour_packages toolchain)"
  mkdir -p "$work/usr/local"
  mv "$work/rust" "$work/usr/local/rust"
  tar -rf "$work/root.tar" -C "$work" --owner 0 --group 0 usr/local/rust
  docker import --change 'ENV PATH=/usr/local/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' \
    --message "Rust $PINNED_RUST on $MACHINE_CODENAME" "$work/root.tar" "$image"
}

# Makes sure that with_cargo works.
ensure_rust() {
  as_operator mkdir -p "$TOOLS" "$RUST_TARGET"
  if machine_rust; then return 0; fi
  echo "no Rust $(wanted_rust) or newer on this machine; using the pinned $PINNED_RUST in an image"
  build_rust_image
}

# The version that with_cargo uses, as rustc prints it: part of the cache key of what it builds.
rust_version() {
  machine_rust || docker run --rm --network none "$(rust_image)" rustc --version
}

# Cargo knows our crates by their place in the workspace, and whether they have changed by the times of files: what another
# checkout has compiled it would take for this one's. What it knows of other people's crates stays.
forget_other_checkout() {
  local stamp=$RUST_TARGET/checkout name
  [ "$(cat "$stamp" 2>/dev/null)" != "$ASSISTANT_ROOT" ] || return 0
  while IFS= read -r name; do
    rm -rf "$RUST_TARGET"/{,*-linux-gnu/}{ci,release,debug}/.fingerprint/"$name"-*
  done < <(grep -hm 1 '^name = ' "$ASSISTANT_ROOT"/{proto,tests,services/*}/Cargo.toml | cut -d '"' -f 2)
  as_operator mkdir -p "$RUST_TARGET"
  # shellcheck disable=SC2016
  as_operator sh -c 'printf "%s\n" "$1" >"$2"' sh "$ASSISTANT_ROOT" "$stamp"
}

# cargo, wherever it is. Extra NAME=VALUE arguments before -- become its environment.
with_cargo() { # [NAME=VALUE]... -- <cargo arguments>...
  local variables=() name
  while [ "$1" != -- ]; do
    [ "$1" != "CARGO_TARGET_DIR=$RUST_TARGET" ] || forget_other_checkout
    variables+=("$1")
    shift
  done
  shift
  if machine_rust >/dev/null; then
    as_operator env PATH="$(toolchain_path)" "${variables[@]}" nice -n 5 cargo "$@"
    return
  fi
  # With an init: an interrupt is to reach cargo, which as the first process of a container would not hear it.
  local arguments=(--rm --init --network host --user "$OPERATOR_UID:$OPERATOR_GID" --volume "$ASSISTANT_ROOT:$ASSISTANT_ROOT"
    --volume "$CACHE:$CACHE" --workdir "$PWD" --env HOME="$CACHE" --env CARGO_HOME="$CACHE/cargo-home")
  for name in HTTP_PROXY HTTPS_PROXY NO_PROXY http_proxy https_proxy no_proxy; do
    [ -z "${!name:-}" ] || arguments+=(--env "$name")
  done
  # Registries behind a proxy with a certificate of its own: the machine's bundle says whom it trusts.
  arguments+=(--volume /etc/ssl/certs/ca-certificates.crt:/etc/ssl/certs/ca-certificates.crt:ro)
  for name in "${variables[@]}"; do arguments+=(--env "$name"); done
  docker run "${arguments[@]}" "$(rust_image)" cargo "$@"
}

# Prints the path of a Go that can build the tools; fetches the pinned one where there is none.
go_command() {
  local go version
  go=$(PATH=$(toolchain_path) command -v go || true)
  if [ -n "$go" ]; then
    version=$("$go" version | awk '{ sub(/^go/, "", $3); print $3 }')
    if version_at_least "$version" "$GO_SWITCHES_SINCE"; then
      printf '%s\n' "$go"
      return 0
    fi
  fi
  printf '%s/go-%s/bin/go\n' "$TOOLS" "$PINNED_GO"
}

# Makes sure that with_go works. The distribution's Go may be old: it then only fetches the pinned toolchain as a module,
# which it checks against Go's checksum database.
ensure_go() {
  local go target=$TOOLS/go-$PINNED_GO module=golang.org/toolchain@v0.0.1-go$PINNED_GO.linux-$MACHINE_ARCH work found
  as_operator mkdir -p "$TOOLS"
  go=$(go_command)
  if [ -x "$go" ]; then
    "$go" version
    return 0
  fi
  install_packages golang-go
  work=$(as_operator mktemp -d "$TOOLS/go.XXXXXX")
  # shellcheck disable=SC2016
  as_operator env GOPATH="$work/path" GOFLAGS=-modcacherw GO111MODULE=on HOME="$work" \
    sh -c 'cd "$HOME" && go mod init fetch && go mod download "$1"' sh "$module" ||
    die "This machine's Go is too old and the pinned Go $PINNED_GO cannot be downloaded." \
      "Install Go $GO_SWITCHES_SINCE or newer, or give this machine a way to the Go module proxy (GOPROXY)."
  found=$work/path/pkg/mod/$module
  # A module zip keeps no executable bits and may hold no go.mod of another module; Go's own switch undoes both as well.
  find "$found/bin" "$found/pkg/tool" -type f -exec chmod 755 {} +
  find "$found/src" -name _go.mod -execdir mv _go.mod go.mod \;
  as_operator mv "$found" "$target"
  rm -rf "$work"
  "$target/bin/go" version
}

with_go() { # [NAME=VALUE]... -- <go arguments>...
  local variables=() go
  while [ "$1" != -- ]; do variables+=("$1"); shift; done
  shift
  go=$(go_command)
  as_operator env PATH="$(dirname "$go"):$(toolchain_path)" CGO_ENABLED=0 "${variables[@]}" nice -n 5 "$go" "$@"
}
