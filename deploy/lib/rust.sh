# Our own programs, built in the one profile that tests and images share. Sourced, never run.
#
# Owns: $RUST_TARGET. Does not: test, or install.
# shellcheck shell=bash

build_rust() {
  (
    cd "$ASSISTANT_ROOT"
    with_cargo CARGO_TARGET_DIR="$RUST_TARGET" -- build --profile ci --locked --workspace --bins
  ) || die "The Rust services did not compile." "Read the compiler's messages in $ASSISTANT_LOG_DIR/build-rust.log."
}
