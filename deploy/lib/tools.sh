# Parts from outside, built from their published sources: once per version, into the operator's cache. Sourced, never run.
#
# Owns: $TOOLS/<name>-<version>. Does not: install anything on the machine, or make images.
# shellcheck shell=bash

# Runs a builder into a fresh directory and gives that its final name only when it has succeeded.
build_once() { # <name-version> <builder> [<argument>]...
  local target=$TOOLS/$1 name=$1 work
  as_operator mkdir -p "$TOOLS"
  shift
  if [ -d "$target" ]; then
    echo "$name is there"
    return 0
  fi
  # Whoever else builds into this cache at the moment is waited for; what lies there afterwards was cut off.
  exec 8<"$TOOLS"
  flock 8
  if [ -d "$target" ]; then
    echo "$name is there"
    return 0
  fi
  rm -rf "$TOOLS/.$name".*
  work=$(as_operator mktemp -d "$TOOLS/.$name.XXXXXX")
  "$@" "$work"
  as_operator chmod 755 "$work"
  as_operator mv "$work" "$target"
  exec 8<&-
}

go_install() { # <module path> <version> <directory>
  with_go GOBIN="$3/bin" -- install -trimpath -ldflags '-s -w' "$1@$2"
}

tool_nats_server() { printf 'nats-server-%s' "$NATS_SERVER_VERSION"; }
tool_nats_cli() { printf 'nats-cli-%s' "$NATS_CLI_VERSION"; }
tool_grpcurl() { printf 'grpcurl-%s' "$GRPCURL_VERSION"; }
tool_jaeger() { printf 'jaeger-%s' "$JAEGER_VERSION"; }
tool_otelcol() { printf 'otelcol-%s-%s' "$OTELCOL_VERSION" "$(short_hash <"$ASSISTANT_ROOT/deploy/images/otel-collector/builder.yaml")"; }
tool_zeroclaw() {
  printf 'zeroclaw-%s-%s' "$ZEROCLAW_VERSION" \
    "$(printf '%s' "$ZEROCLAW_VERSION|$ZEROCLAW_FEATURES|$(rust_version)|dev-nodebug" | short_hash)"
}
tool_zeroclaw_dashboard() { printf 'zeroclaw-dashboard-%s-%.12s' "$ZEROCLAW_VERSION" "$ZEROCLAW_DASHBOARD_SHA256"; }
# Of the distribution, and never installed: its package would start a registry for everyone.
tool_docker_registry() { printf 'docker-registry-%s' "$MACHINE_CODENAME"; }
tool_prometheus() { printf 'prometheus-%s' "$MACHINE_CODENAME"; }
tool_cargo_deny() { printf 'cargo-deny-%s' "$CARGO_DENY_VERSION"; }
tool_mcp_amazing_marvin() {
  printf 'mcp-amazing-marvin-%s-%s' "$MARVIN_MCP_VERSION" \
    "$({ /usr/bin/python3 --version; cat "$ASSISTANT_ROOT"/deploy/images/mcp-amazing-marvin/{requirements,constraints}.txt; } | short_hash)"
}
tool_litellm() {
  printf 'litellm-%s-%s' "$LITELLM_VERSION" \
    "$({ /usr/bin/python3 --version; cat "$ASSISTANT_ROOT"/deploy/images/litellm/requirements.txt; } | short_hash)"
}

build_nats_server() { build_once "$(tool_nats_server)" go_install github.com/nats-io/nats-server/v2 "$NATS_SERVER_VERSION"; }
build_nats_cli() { build_once "$(tool_nats_cli)" go_install github.com/nats-io/natscli/nats "$NATS_CLI_VERSION"; }
build_grpcurl() { build_once "$(tool_grpcurl)" go_install github.com/fullstorydev/grpcurl/cmd/grpcurl "$GRPCURL_VERSION"; }
build_jaeger() { build_once "$(tool_jaeger)" compile_jaeger; }
build_otelcol() { build_once "$(tool_otelcol)" compile_otelcol; }
build_docker_registry() { build_once "$(tool_docker_registry)" unpack_docker_registry; }
build_prometheus() { build_once "$(tool_prometheus)" unpack_prometheus; }
build_cargo_deny() { build_once "$(tool_cargo_deny)" compile_cargo_deny; }
build_zeroclaw() { build_once "$(tool_zeroclaw)" compile_zeroclaw; }
build_zeroclaw_dashboard() { build_once "$(tool_zeroclaw_dashboard)" gather_zeroclaw_dashboard; }
build_litellm() { build_once "$(tool_litellm)" gather_litellm; }
build_mcp_amazing_marvin() { build_once "$(tool_mcp_amazing_marvin)" gather_mcp_amazing_marvin; }

# `go install` refuses Jaeger (its go.mod has replace lines); as a tool of a module of our own it resolves.
compile_jaeger() { # <directory>
  local work
  work=$(as_operator mktemp -d "$CACHE/jaeger.XXXXXX")
  # shellcheck disable=SC2064
  trap "rm -rf '$work'" EXIT
  (
    cd "$work" || exit 1
    with_go -- mod init assistant.local/jaeger
    with_go -- get -tool "github.com/jaegertracing/jaeger/cmd/all-in-one@$JAEGER_VERSION"
    with_go -- build -trimpath -ldflags '-s -w' -o "$1/bin/jaeger" github.com/jaegertracing/jaeger/cmd/all-in-one
  )
}

compile_otelcol() { # <directory>
  local work go
  work=$(as_operator mktemp -d "$CACHE/otelcol.XXXXXX")
  # shellcheck disable=SC2064
  trap "rm -rf '$work'" EXIT
  go_install go.opentelemetry.io/collector/cmd/builder "$OTELCOL_VERSION" "$work"
  sed "s/@VERSION@/$OTELCOL_VERSION/g" "$ASSISTANT_ROOT/deploy/images/otel-collector/builder.yaml" | as_operator tee "$work/builder.yaml" >/dev/null
  go=$(go_command)
  (
    cd "$work" || exit 1
    as_operator env PATH="$(dirname "$go"):$(toolchain_path)" CGO_ENABLED=0 nice -n 5 "$work/bin/builder" --config builder.yaml
  )
  as_operator install -D -m 755 "$work/build/otel-collector" "$1/bin/otel-collector"
}

compile_zeroclaw() { # <directory>
  # A dev build without debug information: a release build of this crate takes half an hour more on two cores, and the
  # agent waits for models, not for its own code.
  with_cargo CARGO_TARGET_DIR="$CACHE/zeroclaw-target" CARGO_PROFILE_DEV_DEBUG=0 CARGO_PROFILE_DEV_STRIP=true -- \
    install zeroclaw --version "$ZEROCLAW_VERSION" --locked --ignore-rust-version --no-default-features \
    --features "$ZEROCLAW_FEATURES" --debug --root "$1"
  rm -rf "$CACHE/zeroclaw-target"
}

# The page, which a browser runs: out of the published crate, and exactly the one that was reviewed.
gather_zeroclaw_dashboard() { # <directory>
  local home source=
  # To say what a crate is, cargo fetches that one and checks it against the registry's index.
  with_cargo -- info --quiet "zeroclaw@$ZEROCLAW_VERSION" >/dev/null
  for home in "${CARGO_HOME:-$OPERATOR_HOME/.cargo}" "$CACHE/cargo-home"; do
    for source in "$home"/registry/src/*/"zeroclaw-$ZEROCLAW_VERSION/web/dist"; do
      [ ! -f "$source/index.html" ] || break 2
    done
  done
  [ -f "$source/index.html" ] ||
    die "cargo did not unpack the crate zeroclaw $ZEROCLAW_VERSION where it is looked for." "Look into ${CARGO_HOME:-$OPERATOR_HOME/.cargo}/registry/src, then run the same command again."
  as_operator cp -R "$source" "$1/dashboard"
  [ "$(files_sha256 "$1/dashboard")" = "$ZEROCLAW_DASHBOARD_SHA256" ] ||
    die "ZeroClaw's dashboard is not the one that was reviewed: its files have another checksum." \
      "Remove ${source%/web/dist} and run the same command again; if this comes back, somebody changed what is published."
}

# Over names and contents; modes and times are whoever unpacked it's.
files_sha256() { # <directory>
  (cd "$1" && find . -type f -print0 | LC_ALL=C sort -z | xargs -0 -r sha256sum | sha256sum | cut -d ' ' -f 1)
}

compile_cargo_deny() { # <directory>
  with_cargo CARGO_TARGET_DIR="$CACHE/cargo-deny-target" CARGO_PROFILE_DEV_DEBUG=0 -- \
    install cargo-deny --version "$CARGO_DENY_VERSION" --locked --debug --root "$1"
  rm -rf "$CACHE/cargo-deny-target"
}

# Programs of a Debian package, without what installing it would start.
unpack_programs() { # <package> <directory> <programs>...
  local package=$1 program
  cd "$2" || return 1
  shift 2
  as_operator apt-get download -q "$package" ||
    die "The package $package cannot be downloaded." "Check that 'apt-get update' works, then run the same command again."
  as_operator mkdir bin
  for program in "$@"; do
    as_operator dpkg-deb --fsys-tarfile "$package"_*.deb | as_operator tar -x --no-same-owner "./usr/bin/$program"
    as_operator mv "usr/bin/$program" bin/
  done
  rm -rf usr "$package"_*.deb
}
unpack_docker_registry() { (unpack_programs docker-registry "$1" docker-registry); }
unpack_prometheus() { (unpack_programs prometheus "$1" prometheus promtool); }

# The machine's own Python: compiled parts then fit the Python of the image, which is of the same release.
gather_mcp_amazing_marvin() { # <directory>
  local wanted=$ASSISTANT_ROOT/deploy/images/mcp-amazing-marvin
  as_operator env PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 /usr/bin/python3 -m pip install --quiet --no-compile --only-binary :all: \
    --requirement "$wanted/requirements.txt" --constraint "$wanted/constraints.txt" --target "$1/site" ||
    die "The Python packages of the task server cannot be downloaded." \
      "Check how this machine reaches its Python package index (pip config list), then run the same command again."
  # Compiled once and never compared with file times: the image is read-only, and copies get new times.
  as_operator /usr/bin/python3 -m compileall -q -f --invalidation-mode unchecked-hash -s "$1/site" -p /opt/mcp "$1/site" || true
}

# The same for LiteLLM; every wheel must have one of the hashes that are written down.
gather_litellm() { # <directory>
  as_operator env PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 /usr/bin/python3 -m pip install --quiet --no-compile --only-binary :all: \
    --require-hashes --no-deps --requirement "$ASSISTANT_ROOT/deploy/images/litellm/requirements.txt" --target "$1/site" ||
    die "The Python packages of LiteLLM cannot be downloaded, or are not the ones that were reviewed." \
      "Check how this machine reaches its Python package index (pip config list), then run the same command again."
  as_operator /usr/bin/python3 -m compileall -q -f --invalidation-mode unchecked-hash -s "$1/site" -p /opt/litellm "$1/site" || true
}

# Directories of the tools that tests start by themselves, for PATH.
tools_path() { printf '%s/bin:%s/bin:%s/bin' "$TOOLS/$(tool_nats_server)" "$TOOLS/$(tool_nats_cli)" "$TOOLS/$(tool_grpcurl)"; }

# Removes versions that nothing asks for any more.
forget_old_tools() {
  forget_old_sandbox_parts
  local keep path name
  keep=" $(tool_nats_server) $(tool_nats_cli) $(tool_grpcurl) $(tool_jaeger) $(tool_otelcol) $(tool_zeroclaw) $(tool_mcp_amazing_marvin) $(tool_litellm) $(tool_prometheus) $(tool_docker_registry) "
  for path in "$TOOLS"/{nats-server,nats-cli,grpcurl,jaeger,otelcol,zeroclaw,mcp-amazing-marvin,litellm,prometheus,docker-registry}-*; do
    name=$(basename "$path")
    [ ! -d "$path" ] || [[ $keep == *" $name "* ]] || { echo "removing $name, superseded"; rm -rf "$path"; }
  done
}
