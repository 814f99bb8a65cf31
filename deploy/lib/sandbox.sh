# Parts of the images for sandboxed tiers. Sourced, never run.
#
# Owns: the tools that no package of the distribution has (uv, pnpm), the docker client alone, the archive with which the
# sandbox's image gets into the sandbox's own Docker. Does not: build images (images.sh), or run a sandbox.
# shellcheck shell=bash

tool_sandbox_tools() {
  printf 'sandbox-tools-%s' "$(printf '%s\n' "$UV_VERSION" "$PNPM_VERSION" "$MACHINE_ARCH" | short_hash)"
}
tool_docker_client() { printf 'docker-client-%s-%s' "$MACHINE_CODENAME" "$(docker_client_version | short_hash)"; }

build_sandbox_tools() { build_once "$(tool_sandbox_tools)" gather_sandbox_tools; }
build_docker_client() { build_once "$(tool_docker_client)" unpack_docker_client; }

gather_sandbox_tools() { # <directory>
  as_operator env PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 /usr/bin/python3 -m pip install --quiet --no-compile \
    --no-deps --only-binary :all: --target "$1/uv" "uv==$UV_VERSION" ||
    die "uv cannot be downloaded." "Check how this machine reaches its Python package index (pip config list), then run the same command again."
  as_operator mkdir "$1/npm"
  with_npm install --prefix "$1/npm" --ignore-scripts --no-audit --no-fund --no-save --loglevel error "pnpm@$PNPM_VERSION" ||
    die "pnpm cannot be downloaded." "Check how this machine reaches the npm registry, then run the same command again."
}

# npm, wherever it is: the machine's own, or that of the sandbox's root filesystem, which is made before its image is.
with_npm() { # <arguments of npm>...
  if as_operator sh -c 'command -v npm' >/dev/null 2>&1; then
    # Node.js trusts what came with it alone, unless it is told of the machine's own bundle.
    as_operator env NODE_EXTRA_CA_CERTS="${NODE_EXTRA_CA_CERTS:-/etc/ssl/certs/ca-certificates.crt}" npm "$@"
    return
  fi
  local name arguments=(--rm --network host --user "$OPERATOR_UID:$OPERATOR_GID" --volume "$CACHE:$CACHE" --env HOME="$CACHE"
    --volume /etc/ssl/certs/ca-certificates.crt:/etc/ssl/certs/ca-certificates.crt:ro
    --env NODE_EXTRA_CA_CERTS=/etc/ssl/certs/ca-certificates.crt)
  for name in HTTP_PROXY HTTPS_PROXY NO_PROXY http_proxy https_proxy no_proxy; do
    [ -z "${!name:-}" ] || arguments+=(--env "$name")
  done
  docker run "${arguments[@]}" "$(base_image sandbox)" npm "$@"
}

# From Debian 13 on the client is a package of its own; before, and on Ubuntu, it comes with the daemon.
docker_client_package() {
  if [ -n "$(apt-cache madison docker-cli 2>/dev/null)" ]; then printf 'docker-cli'; else printf 'docker.io'; fi
}
docker_client_version() { apt-cache policy "$(docker_client_package)" | sed -n 's/^ *Candidate: //p'; }

unpack_docker_client() { (unpack_programs "$(docker_client_package)" "$1" docker); }

stage_sandbox() { # <context>
  local parts
  build_sandbox_tools
  parts=$TOOLS/$(tool_sandbox_tools)
  put "$parts/uv/bin/uv" "$1/bin/uv"
  put "$parts/uv/bin/uvx" "$1/bin/uvx"
  mkdir -p "$1/opt"
  cp -Rl "$parts/npm/node_modules/pnpm" "$1/opt/pnpm" 2>/dev/null || cp -R "$parts/npm/node_modules/pnpm" "$1/opt/pnpm"
  chmod -R u=rwX,go=rX "$1/opt"
  mv "$1/in-workspace" "$1/pnpm" "$1/bin/"
  chmod 755 "$1/bin/in-workspace" "$1/bin/pnpm"
}

# The image that is nested comes first; it is the first line of image_table of the two, and is there already then.
stage_sandbox_daemon() { # <context>
  local name flavour stage version user directories reference tag archive
  reference=$(mktemp)
  read -r name flavour stage version user directories < <(image_table | grep '^sandbox ')
  (build_image "$name" "$flavour" "$stage" "$version" "$user" "$directories" "$reference")
  tag=$(sed 's/.*://' "$reference")
  archive=sandbox-archive-$tag
  build_once "$archive" save_sandbox "$(cat "$reference")"
  rm -f "$reference"
  put "$TOOLS/$archive/sandbox.tar.gz" "$1/nested/sandbox.tar.gz"
  printf '%s\n' "$tag" >"$1/nested/tag"
  chmod 644 "$1/nested/tag"
  chmod 755 "$1/bin/sandbox-daemon"
}

# Under the name that it has inside.
save_sandbox() { # <image> <directory>
  local inside=assistant-sandbox:${1##*:}
  docker tag "$1" "$inside"
  docker save "$inside" | gzip -n -1 >"$2/sandbox.tar.gz"
  docker image rm "$inside" >/dev/null
}

stage_sandbox_filter() { put "$RUST_BIN/docker-filter" "$1/bin/docker-filter"; }

stage_zeroclaw_docker() { # <context>
  stage_zeroclaw "$1"
  build_docker_client
  put "$TOOLS/$(tool_docker_client)/bin/docker" "$1/helpers/docker"
  mkdir -p "$1/helpers/docker-config"
  printf '{}\n' >"$1/helpers/docker-config/config.json"
  mv "$1/docker" "$1/bin/docker"
  chmod 755 "$1/bin/docker"
}

# Archives of images that are gone, and versions that nothing asks for any more.
forget_old_sandbox_parts() {
  local path name
  for path in "$TOOLS"/{sandbox-archive,sandbox-tools,docker-client}-*; do
    name=$(basename "$path")
    [ -d "$path" ] || continue
    case $name in
      sandbox-archive-*) ! docker image inspect "assistant/sandbox:${name#sandbox-archive-}" >/dev/null 2>&1 || continue ;;
      "$(tool_sandbox_tools)" | "$(tool_docker_client)") continue ;;
    esac
    echo "removing $name, superseded"
    rm -rf "$path"
  done
}
