# Our own programs, built in the one profile that tests and images share. Sourced, never run.
#
# Owns: $RUST_TARGET. Does not: test, or install.
# shellcheck shell=bash

# tier-supervisor before the others, which are more: it says whether what the person wrote can be used. All packages are
# named, so that dependencies get the features that they have below and nothing is compiled twice.
build_supervisor() {
  (
    cd "$ASSISTANT_ROOT"
    with_cargo CARGO_TARGET_DIR="$RUST_TARGET" -- build --profile ci --locked --workspace --bin tier-supervisor
  ) || die "tier-supervisor did not compile." "Read the compiler's messages in $ASSISTANT_LOG_DIR/build-supervisor.log."
}

build_rust() {
  (
    cd "$ASSISTANT_ROOT"
    with_cargo CARGO_TARGET_DIR="$RUST_TARGET" -- build --profile ci --locked --workspace --bins
  ) || die "The Rust services did not compile." "Read the compiler's messages in $ASSISTANT_LOG_DIR/build-rust.log."
}

rust_triple() { case $MACHINE_ARCH in amd64) echo x86_64-unknown-linux-gnu ;; *) echo aarch64-unknown-linux-gnu ;; esac }
# The wrapper of MCP servers, without any library of this machine: it is mounted into images of others, whatever they hold.
static_wrapper() { printf '%s/%s/ci/mcp-stdio' "$RUST_TARGET" "$(rust_triple)"; }
build_static_wrapper() {
  (
    cd "$ASSISTANT_ROOT"
    with_cargo CARGO_TARGET_DIR="$RUST_TARGET" RUSTFLAGS="-C target-feature=+crt-static" -- build --profile ci --locked \
      --target "$(rust_triple)" -p shims --bin mcp-stdio
  ) || die "The wrapper of MCP servers did not compile." "Read the compiler's messages in $ASSISTANT_LOG_DIR/build-rust.log."
}
