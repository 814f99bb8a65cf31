# Our images: from Dockerfiles under deploy/images/, what was built before, and a base image. Sourced, never run.
#
# Owns: assistant/<name>:<hash>, $ASSISTANT_STATE/images.json, the removal of old generations.
# Does not: compile (rust.sh, tools.sh), bootstrap (base.sh), pull (external.sh), or run a container.
# shellcheck shell=bash

IMAGES_FILE=$ASSISTANT_STATE/images.json

# A name of the catalogue in tiers.yaml for a server that we build ourselves.
MARVIN_CATALOGUE_IMAGE=zeroclaw/amazing-marvin-mcp:local

# The list of what there is: name, flavour of the base, function that fills the context, version, user, and the
# directories that belong to the user. A new named volume takes its owner from the directory that it covers.
image_table() {
  local ours
  ours=$(sed -n 's/^version = "\(.*\)"$/\1/p' "$ASSISTANT_ROOT/Cargo.toml" | head -n 1)
  cat <<TABLE
secret-broker plain stage_service $ours 8701:8700 var/lib/assistant
egress-auditor plain stage_service $ours 8702:8700 var/lib/assistant
channel-bridge plain stage_channel_bridge $ours 8703:8700 var/lib/assistant
squid squid stage_squid $ours 8704:8700 var/log/squid,var/spool/squid
nats plain stage_nats $NATS_SERVER_VERSION 8705:8700 var/lib/assistant
jaeger plain stage_jaeger $JAEGER_VERSION 8706:8700 var/lib/assistant
otel-collector plain stage_otelcol $OTELCOL_VERSION 8707:8700 var/lib/assistant
litellm python stage_litellm $LITELLM_VERSION 8711:8700 var/lib/assistant
prometheus prometheus stage_nothing $ours 8708:8700 var/lib/assistant
zeroclaw agent stage_zeroclaw $ZEROCLAW_VERSION 65534:65534 zeroclaw-data
mcp-amazing-marvin python stage_mcp_amazing_marvin $MARVIN_MCP_VERSION 8710:8700 var/lib/assistant
zeroclaw-docker agent stage_zeroclaw_docker $ZEROCLAW_VERSION 65534:65534 zeroclaw-data,zeroclaw-data/workspace,run/sandbox-api
sandbox sandbox stage_sandbox $ours 0:0 workspace
sandbox-daemon sandbox-daemon stage_sandbox_daemon $ours 65534:65534 run/sandbox,run/user,var/lib/sandbox,zeroclaw-data/workspace
sandbox-filter plain stage_sandbox_filter $ours 65534:65534 run/sandbox,run/sandbox-api
probe probe stage_nothing $ours 65534:65534 var/lib/assistant
TABLE
}

# Directories with an owner, as a tar: the only way to say it that both builders understand without running anything.
stage_directories() { # <context> <uid:gid> <directories, comma separated>
  local tree directories
  IFS=, read -r -a directories <<<"$3"
  tree=$(mktemp -d)
  (cd "$tree" && mkdir -p "${directories[@]}")
  tar -C "$tree" --no-recursion --format=ustar --numeric-owner --mtime=@0 --mode=0700 --owner "${2%:*}" --group "${2#*:}" \
    -cf "$1/directories.tar" "${directories[@]}"
  rm -rf "$tree"
}

# Links rather than copies: most of the time the context is only hashed and thrown away.
put() { # <file> <target>
  [ -f "$1" ] || die "The part $1 was not built." "Run the same command again; if this comes back, remove $CACHE and try once more."
  mkdir -p "$(dirname "$2")"
  ln "$1" "$2" 2>/dev/null || cp "$1" "$2"
  chmod 755 "$2"
}

stage_service() { put "$RUST_BIN/$2" "$1/bin/$2"; }
stage_channel_bridge() {
  stage_service "$1" "$2"
  build_zeroclaw_dashboard
  cp -R "$TOOLS/$(tool_zeroclaw_dashboard)/dashboard" "$1/dashboard"
  chmod -R u=rwX,go=rX "$1/dashboard"
}
stage_nats() { put "$TOOLS/$(tool_nats_server)/bin/nats-server" "$1/bin/nats-server"; }
stage_jaeger() { put "$TOOLS/$(tool_jaeger)/bin/jaeger" "$1/bin/jaeger"; }
stage_otelcol() { put "$TOOLS/$(tool_otelcol)/bin/otel-collector" "$1/bin/otel-collector"; }
stage_zeroclaw() { put "$TOOLS/$(tool_zeroclaw)/bin/zeroclaw" "$1/bin/zeroclaw"; }
stage_squid() {
  put "$RUST_BIN/sni-helper" "$1/helpers/sni-helper"
  put "$RUST_BIN/squid-auth" "$1/helpers/squid-auth"
}
stage_mcp_amazing_marvin() {
  stage_site "$1" "$TOOLS/$(tool_mcp_amazing_marvin)/site"
  put "$RUST_BIN/mcp-stdio" "$1/helpers/mcp-stdio"
}
stage_litellm() {
  build_litellm
  stage_site "$1" "$TOOLS/$(tool_litellm)/site"
  chmod 755 "$1/litellm-serve"
}
stage_nothing() { :; }

# Python packages, tens of thousands of files that never change once they are installed: hashed once, beside them, and
# put into the context only when the image is built.
stage_site() { # <context> <installed packages>
  if [ ! -s "$2.hash" ]; then
    # Command line wrappers name the path of the machine that installed them; nothing here starts them.
    rm -rf "${2:?}/bin"
    chmod -R u=rwX,go=rX "$2"
    tree_hash "$2" >"$2.hash.new"
    mv -f "$2.hash.new" "$2.hash"
  fi
  cp "$2.hash" "$1/site.hash"
  printf '%s\n' "$2" >"$1.site"
}

# The legacy builder where there is no other: our Dockerfiles use only what both know, and run nothing.
docker_build() {
  if docker buildx version >/dev/null 2>&1; then docker build "$@"; else DOCKER_BUILDKIT=0 docker build "$@"; fi
}

# Hash over content, modes and names of a directory, whatever its place and times.
tree_hash() { # <directory>
  (
    cd "$1" || exit 1
    find . -type f -printf '%m %P\n' | LC_ALL=C sort
    find . -type f -print0 | LC_ALL=C sort -z | xargs -0 -r sha256sum
  ) | short_hash
}

build_image() { # <name> <flavour> <stage function> <version> <user> <directories> <file for the reference>
  local name=$1 base context tag recipe=$1
  build_base "$2"
  base=$(base_image "$2")
  case $name in secret-broker | egress-auditor) recipe=service ;; esac
  context=$(mktemp -d "$CACHE/context.XXXXXX")
  # shellcheck disable=SC2064
  trap "rm -rf '$context' '$context.site'" EXIT
  cp -R "$ASSISTANT_ROOT/deploy/images/$recipe/." "$context"
  rm -f "$context"/{builder.yaml,requirements.txt,constraints.txt}
  chmod -R u=rwX,go=rX "$context"
  [ ! -f "$context/mcp-server" ] || chmod 755 "$context/mcp-server"
  "$3" "$context" "$name"
  stage_directories "$context" "$5" "$6"
  tag=assistant/$name:$(printf '%s\n' "$base" "$4" "$5" "$(tree_hash "$context")" | short_hash)
  if docker image inspect "$tag" >/dev/null 2>&1; then
    echo "$tag is there"
  else
    [ ! -f "$context.site" ] || cp -Rl "$(cat "$context.site")" "$context/site" 2>/dev/null ||
      { rm -rf "$context/site" && cp -R "$(cat "$context.site")" "$context/site"; }
    docker_build --tag "$tag" --build-arg "BASE=$base" --build-arg "VERSION=$4" --build-arg "SERVICE=$name" \
      --build-arg "USER=$5" "$context"
  fi
  rm -rf "$context" "$context.site"
  printf '%s\n' "$tag" >"$7"
}

# Builds every image, or those named, and writes images.json. What is there already is left alone.
build_images() { # [<name>]...
  local name flavour stage version user directories work json image wanted=" $* "
  work=$(mktemp -d)
  json=$(jq -n --arg base "$(base_image plain)" '{base: $base}')
  while read -r name flavour stage version user directories; do
    [ "$wanted" = "  " ] || [[ $wanted == *" $name "* ]] || continue
    if image=$(pulled_image "$name"); then
      echo "image $name was pulled"
      json=$(jq --arg name "$name" --arg tag "$image" '.[$name] = $tag' <<<"$json")
      continue
    fi
    echo "image $name"
    (build_image "$name" "$flavour" "$stage" "$version" "$user" "$directories" "$work/tag")
    case $name in mcp-amazing-marvin) name=$MARVIN_CATALOGUE_IMAGE ;; esac
    json=$(jq --arg name "$name" --arg tag "$(cat "$work/tag")" '.[$name] = $tag' <<<"$json")
  done < <(image_table)
  rm -rf "$work"
  [ "$wanted" = "  " ] || { printf '%s\n' "$json"; return 0; }
  while read -r name image; do
    json=$(jq --arg name "$name" --arg tag "$image" '.[$name] = $tag' <<<"$json")
  done < <(pulled_only)
  printf '%s\n' "$json" >"$IMAGES_FILE.new"
  chmod 644 "$IMAGES_FILE.new"
  mv -f "$IMAGES_FILE.new" "$IMAGES_FILE"
  forget_old_images
}

# Keeps the newest two of each name, and whatever images.json names. What a container uses, Docker refuses to remove.
forget_old_images() {
  local name reference count
  while read -r name; do
    count=0
    while read -r reference; do
      count=$((count + 1))
      [ "$count" -gt 2 ] || continue
      ! grep -qF "\"$reference\"" "$IMAGES_FILE" || continue
      docker image rm "$reference" >/dev/null 2>&1 || echo "$reference is superseded but still in use"
    done < <(docker image ls "$name" --format '{{.CreatedAt}}|{{.Repository}}:{{.Tag}}' | LC_ALL=C sort -r | cut -d '|' -f 2)
  done < <(docker image ls 'assistant/*' --format '{{.Repository}}' | LC_ALL=C sort -u)
}
