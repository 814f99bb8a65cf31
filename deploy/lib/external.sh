# External images: pulled by digest where a registry answers, left to be built where none does. Sourced, never run.
#
# Owns: the choice between the two, $IMAGE_SOURCES, assistant/<name>:<hash> made from what was pulled.
# Does not: build from source (tools.sh, images.sh), keep the digests (images-lock.sh), or ever pull by tag.
# shellcheck shell=bash

EXTERNAL_IMAGES=${ASSISTANT_EXTERNAL_IMAGES:-$ASSISTANT_ROOT/deploy/images/external.json}
# What was decided for this machine: {"<name>": {"source": "pull|build|none", "image": "...", "note": "..."}}.
IMAGE_SOURCES=$ASSISTANT_STATE/image-sources.json

# Status of what the caller may answer by building, and of what nobody may go round.
EXTERNAL_UNAVAILABLE=4
EXTERNAL_REFUSED=5

image_policy() {
  case ${ASSISTANT_IMAGES:-auto} in
    auto | pull | build) printf '%s' "${ASSISTANT_IMAGES:-auto}" ;;
    *) die "ASSISTANT_IMAGES is '$ASSISTANT_IMAGES'." "It says where images come from: auto, pull or build." ;;
  esac
}

external() { # <name> <jq filter>: nothing when there is none
  jq -r --arg name "$1" ".[\$name] | $2 // empty" "$EXTERNAL_IMAGES"
}

external_names() { jq -r 'keys_unsorted[]' "$EXTERNAL_IMAGES"; }

# The image's line in image_table; fails for one that cannot be built here.
external_row() { image_table | grep "^$1 "; } # <name>

repository() { printf '%s' "${1%:*}"; } # <reference>

has_image() { docker image inspect "$1" >/dev/null 2>&1; } # <reference>

# A file of ours: what is wrong in it is a mistake of whoever changed it last, said before anything is asked for.
check_external() {
  local problems name reference version
  problems=$(jq -r '
    to_entries[] | .key as $name | .value | if type != "object" then "\($name) is not an object" else
      (if .drop_in | type != "boolean" then "\($name) does not say drop_in: true or false" else empty end),
      (if .reference == null then (if .drop_in then "\($name) has no reference" else empty end)
        elif (.reference | test("^[a-z0-9.-]+(:[0-9]+)?(/[a-z0-9]+([._-]+[a-z0-9]+)*)+:[A-Za-z0-9_][A-Za-z0-9_.-]*$") | not)
        then "the reference of \($name) is not <registry>/<repository>:<tag>" else empty end),
      (if .drop_in and ((.prove.run | type != "array") or (.prove.says | type != "string"))
        then "\($name) does not say how it is proved to run" else empty end),
      (if .drop_in and (.take | not) and ((.user and .directories) | not)
        then "\($name) says neither what is taken from it nor its user and directories" else empty end),
      (if .drop_in == false and (.why | not) then "\($name) does not say why it is not pulled" else empty end)
    end' "$EXTERNAL_IMAGES" 2>&1) || true
  # Two places name a version; they must not part.
  while read -r name reference; do
    version=$(external_row "$name" | cut -d ' ' -f 4) || true
    if [ -z "$version" ]; then problems+=$'\n'"$name is to be taken from an image, but has no line in image_table"
    elif [[ ${reference##*:} != *"${version#v}"* ]]; then problems+=$'\n'"$name is $version in versions.sh and another version in $reference"; fi
  done < <(jq -r 'to_entries[] | select(.value.take) | "\(.key) \(.value.reference)"' "$EXTERNAL_IMAGES" 2>/dev/null)
  [ -z "$problems" ] || die "$EXTERNAL_IMAGES is not right: $problems" "Mend it, or take it back to the state of the last commit."
}

# Asks the engine what a tag leads to now. The engine knows mirrors, proxies and certificates, and pulls nothing for it.
# Sets REGISTRY_DIGEST. Status 1: no answer; 2: there is no such image. REGISTRY_SAID has what was said.
ask_registry() { # <reference> <seconds>
  local endpoint=${DOCKER_HOST:-unix:///var/run/docker.sock} api answer code
  REGISTRY_DIGEST=
  REGISTRY_SAID=
  case $endpoint in
    unix://*) ;;
    *) REGISTRY_SAID="DOCKER_HOST is $endpoint, and only the engine of this machine is asked"; return 1 ;;
  esac
  api=$(timeout 10 docker version --format '{{.Server.APIVersion}}' 2>/dev/null) || { REGISTRY_SAID="Docker does not answer"; return 1; }
  answer=$(mktemp)
  code=$(curl --silent --show-error --noproxy '*' --max-time "$2" --unix-socket "${endpoint#unix://}" --output "$answer" \
    --stderr "$answer.said" --write-out '%{http_code}' "http://docker/v$api/distribution/$1/json") || code=000
  if [ "$code" = 200 ]; then
    REGISTRY_DIGEST=$(jq -r '.Descriptor.digest // empty' "$answer" 2>/dev/null) || REGISTRY_DIGEST=
  fi
  REGISTRY_SAID=$({ jq -r '.message // empty' "$answer" || cat "$answer"; cat "$answer.said"; } 2>/dev/null | ui_harmless | head -c 300) || true
  rm -f "$answer" "$answer.said"
  case $code in
    200) is_digest "$REGISTRY_DIGEST" || { REGISTRY_SAID="its answer holds no digest"; return 1; } ;;
    401 | 403 | 404) return 2 ;;
    *) return 1 ;;
  esac
}

# Whether the registry of an image answers. Asked once for all registries, at the same time, and not for long: a machine
# without one must not wait.
registry_answers() { # <reference>
  local work host reference
  if [ -z "${REGISTRIES_ANSWERING+asked}" ]; then
    work=$(mktemp -d)
    while read -r host reference; do
      (
        status=0
        ask_registry "$reference" 5 || status=$?
        if [ "$status" -eq 1 ]; then echo "$host does not answer: $REGISTRY_SAID"; else : >"$work/$host"; fi
      ) &
    done < <(jq -r '.[] | select(.drop_in) | .reference | "\(split("/")[0]) \(.)"' "$EXTERNAL_IMAGES" | awk '!seen[$1]++')
    wait
    REGISTRIES_ANSWERING=" $(find "$work" -type f -printf '%f ')"
    rm -rf "$work"
  fi
  [[ $REGISTRIES_ANSWERING == *" ${1%%/*} "* ]]
}

# User and directories of what is made from a pulled image.
external_user() { # <name>: "<uid:gid> <directories>"
  if [ -n "$(external "$1" .take)" ]; then external_row "$1" | cut -d ' ' -f 5,6
  else external "$1" '"\(.user) \(.directories)"'; fi
}

external_recipe() { # <name>: directory of its Dockerfile
  if [ -n "$(external "$1" .take)" ]; then printf '%s' "$ASSISTANT_ROOT/deploy/images/$1"
  else printf '%s' "$ASSISTANT_ROOT/deploy/images/pulled"; fi
}

# The name of what is made from a digest: known without the pulled image, so that a start needs nothing but the result.
pulled_tag() { # <name> <digest>
  local base=whole
  if [ -n "$(external "$1" .take)" ]; then base=$(base_image "$(external_row "$1" | cut -d ' ' -f 2)"); fi
  printf 'assistant/%s:%s' "$1" "$({
    printf '%s\n' "$2" "$base" "$(external_row "$1" || true)" "$(tree_hash "$(external_recipe "$1")")"
    jq -cS --arg name "$1" '.[$name] | {reference, take, user, directories, prove}' "$EXTERNAL_IMAGES"
  } | short_hash)"
}

# The end of a subshell that did not get its image: a status, what is wrong, what to do.
give_up() { # <status> <file for the reason> <what> [<advice>]
  printf '%s\f%s' "$3" "${4:-}" >"$2"
  exit "$1"
}

# Files out of a pulled image, into the places of the recipe's context where those built here would lie.
take_files() { # <name> <pulled reference> <context> <file for the reason>
  local container from to
  # Never started; the command is there because an image may have none, and Docker then makes no container.
  container=$(docker create --network none --read-only "$2" none)
  # shellcheck disable=SC2064
  trap "docker rm '$container' >/dev/null" EXIT
  while IFS=$'\t' read -r from to; do
    mkdir -p "$(dirname "$3/$to")"
    docker cp -L "$container:$from" "$3/$to" || give_up "$EXTERNAL_UNAVAILABLE" "$4" "$1 has no $from in $2"
    if [ ! -f "$3/$to" ] || [ ! -s "$3/$to" ]; then give_up "$EXTERNAL_UNAVAILABLE" "$4" "$from of $2 is no program"; fi
    chmod 755 "$3/$to"
  done < <(jq -r --arg name "$1" '.[$name].take | to_entries[] | "\(.key)\t\(.value)"' "$EXTERNAL_IMAGES")
}

# Makes our image from a pulled one that is here, and shows that it runs as containers of ours run.
make_pulled() { # <name> <digest> <file for the reason>
  local name=$1 source tag base flavour version user directories context
  source=$(repository "$(external "$name" .reference)")@$2
  tag=$(pulled_tag "$name" "$2")
  read -r user directories < <(external_user "$name")
  context=$(mktemp -d "$CACHE/context.XXXXXX")
  # shellcheck disable=SC2064
  trap "rm -rf '$context'" EXIT
  cp -R "$(external_recipe "$name")/." "$context"
  rm -f "$context/builder.yaml"
  chmod -R u=rwX,go=rX "$context"
  if [ -n "$(external "$name" .take)" ]; then
    read -r _ flavour _ version _ < <(external_row "$name")
    (build_base "$flavour")
    base=$(base_image "$flavour")
    (take_files "$name" "$source" "$context" "$3")
  else
    base=$source
    version=${source#*@}
  fi
  stage_directories "$context" "$user" "$directories"
  docker_build --tag "$tag" --label "assistant.pulled=$source" --build-arg "BASE=$base" --build-arg "VERSION=$version" \
    --build-arg "SERVICE=$name" --build-arg "USER=$user" "$context"
  rm -rf "$context"
  trap - EXIT
  prove_image "$name" "$tag" "$user" "$3"
}

# An image from elsewhere may be laid out otherwise than when external.json was written. One that does not run without
# network, capabilities and a writable root, as its user here, is not used.
prove_image() { # <name> <image> <user> <file for the reason>
  local container=assistant-proof-$1 run=() entrypoint=() output
  mapfile -t run < <(jq -r --arg name "$1" '.[$name].prove.run[]' "$EXTERNAL_IMAGES")
  case ${run[0]} in /*) entrypoint=(--entrypoint "${run[0]}"); run=("${run[@]:1}") ;; esac
  docker rm -f "$container" >/dev/null 2>&1 || true
  output=$(timeout 60 docker run --rm --name "$container" --network none --read-only --tmpfs /tmp --cap-drop ALL \
    --security-opt no-new-privileges --pids-limit 64 --memory 512m --user "$3" "${entrypoint[@]}" "$2" "${run[@]}" 2>&1) || true
  docker rm -f "$container" >/dev/null 2>&1 || true
  printf '%s\n' "$output" | ui_harmless | tail -n 5
  if ! grep -qF -- "$(external "$1" .prove.says)" <<<"$output"; then
    docker image rm "$2" >/dev/null 2>&1 || true
    give_up "$EXTERNAL_UNAVAILABLE" "$4" "the pulled $1 does not run here as it should (it does not say '$(external "$1" .prove.says)')"
  fi
  echo "$2 runs"
}

# Gets an image by digest and makes ours from it. A digest that is not locked yet is, once all of that has worked.
acquire() { # <name> <digest, or nothing for what the tag leads to now> <file for the reason>
  local name=$1 locked=$2 reason=$3 reference digest status=0 said architecture accept
  reference=$(external "$name" .reference)
  accept="Find out why before you accept it: deploy/images.sh update $name. Or go on without pulling: ASSISTANT_IMAGES=build."
  ask_registry "$reference" 30 || status=$?
  case $status in
    0) ;;
    2) give_up "$EXTERNAL_UNAVAILABLE" "$reason" "there is no $reference (the registry says: $REGISTRY_SAID)" ;;
    *) give_up "$EXTERNAL_UNAVAILABLE" "$reason" "the registry of $reference does not answer ($REGISTRY_SAID)" ;;
  esac
  digest=$REGISTRY_DIGEST
  if [ -n "$locked" ] && [ "$locked" != "$digest" ]; then
    give_up "$EXTERNAL_REFUSED" "$reason" "$reference now leads to $digest, and deploy/images.lock holds $locked: the publisher moved the tag, or the lock file was changed." "$accept"
  fi
  echo "pulling $reference as $digest"
  if ! said=$(timeout 1800 docker pull --quiet "$(repository "$reference")@$digest" 2>&1); then
    said=$(ui_harmless <<<"$said" | tail -n 1 | head -c 300)
    case $said in
      *'verification failed'* | *'manifest unknown'* | *'not found'* | *'does not match'* | *'unexpected commit digest'* | *'failed size validation'*)
        give_up "$EXTERNAL_REFUSED" "$reason" "what the registry gives for $reference does not have the digest $digest ($said)." "$accept" ;;
    esac
    give_up "$EXTERNAL_UNAVAILABLE" "$reason" "$reference could not be pulled ($said)"
  fi
  architecture=$(docker image inspect --format '{{.Architecture}}' "$(repository "$reference")@$digest")
  [ "$architecture" = "$MACHINE_ARCH" ] ||
    give_up "$EXTERNAL_UNAVAILABLE" "$reason" "$reference is for $architecture, and this machine is $MACHINE_ARCH"
  make_pulled "$name" "$digest" "$reason"
  lock_digest "$name" "$reference" "$digest"
}

# Runs a function in a subshell with errexit in force, which a condition would switch off. Sets ATTEMPT.
attempt() { # <command>...
  set +e
  (set -e; "$@")
  ATTEMPT=$?
  set -e
}

# Whether the stack asks for it at all. A key that still lies in .env is taken over only later, by a program that is not
# compiled yet.
external_wanted() { # <name>
  local secret
  secret=$(external "$1" .needs_secret)
  [ -z "$secret" ] || { [ "${mode:-live}" = live ] && { live_secret "$secret" || env_gives "${secret^^}"; }; }
}

# Whether building it is a matter of seconds, because its program was compiled before.
external_compiled() { # <name>
  case $1 in
    nats) [ -d "$TOOLS/$(tool_nats_server)" ] ;;
    jaeger) [ -d "$TOOLS/$(tool_jaeger)" ] ;;
    otel-collector) [ -d "$TOOLS/$(tool_otelcol)" ] ;;
    *) false ;;
  esac
}

chosen() { # <source> <image> <note>: sets CHOSEN
  printf '%s: %s%s%s\n' "$name" "$1" "${2:+ $2}" "${3:+, $3}"
  CHOSEN=$(jq -n --arg source "$1" --arg image "$2" --arg note "$3" '{source: $source} + (if $image != "" then {image: $image} else {} end)
    + (if $note != "" then {note: $note} else {} end)')
}

# Decides for one image, and gets it when it is to be pulled. Sets CHOSEN.
choose_image() { # <name> <policy> <whether it was asked for by name> <file for the reason>
  local name=$1 policy=$2 asked=$3 reason=$4 buildable='' reference digest what advice
  reference=$(external "$name" .reference)
  if external_row "$name" >/dev/null; then buildable=1; fi
  if [ "$(external "$name" .drop_in)" != true ]; then chosen build "" ""; return 0; fi
  if [ -z "$asked" ] && ! external_wanted "$name"; then chosen none "" ""; return 0; fi
  if [ "$policy" = build ] && [ -n "$buildable" ]; then chosen build "" ""; return 0; fi
  digest=$(locked_digest "$name" "$reference")
  if [ -n "$digest" ] && has_image "$(pulled_tag "$name" "$digest")"; then
    chosen pull "$(pulled_tag "$name" "$digest")" ""
    return 0
  fi
  if [ -n "$digest" ] && has_image "$(repository "$reference")@$digest"; then
    attempt make_pulled "$name" "$digest" "$reason"
  elif [ "$policy" = build ]; then
    printf 'it can only be pulled, and this run only builds' >"$reason"
    ATTEMPT=$EXTERNAL_UNAVAILABLE
  elif [ "$policy" = auto ] && [ -n "$buildable" ] && external_compiled "$name"; then
    chosen build "" ""
    return 0
  elif ! registry_answers "$reference"; then
    printf '%s does not answer%s' "${reference%%/*}" "$([ -n "$buildable" ] || printf ', and it can only be pulled')" >"$reason"
    ATTEMPT=$EXTERNAL_UNAVAILABLE
  else
    attempt acquire "$name" "$digest" "$reason"
    # The first pull has written the lock.
    [ "$ATTEMPT" -ne 0 ] || digest=$(locked_digest "$name" "$reference")
  fi
  if [ "$ATTEMPT" -eq 0 ]; then
    chosen pull "$(pulled_tag "$name" "$digest")" ""
    return 0
  fi
  [ -s "$reason" ] || printf 'making an image of it did not work' >"$reason"
  what=$(cut -d $'\f' -f 1 -z "$reason" | tr -d '\0')
  advice=$(cut -d $'\f' -f 2 -s -z "$reason" | tr -d '\0')
  : >"$reason"
  [ "$ATTEMPT" -ne "$EXTERNAL_REFUSED" ] || die "The image $name is refused: $what" "$advice"
  if [ "$policy" = pull ] || { [ -z "$buildable" ] && { [ -n "$asked" ] || [ -n "$(external "$name" .needs_secret)" ]; }; }; then
    die "The image $name cannot be had: $what." \
      "$(if [ -n "$buildable" ]; then echo "Give this machine a way to that registry, or build instead: ASSISTANT_IMAGES=build."
        else echo "Give this machine a way to that registry, then run the same command again."; fi)"
  fi
  if [ -n "$buildable" ]; then
    # That no registry answers is said once, not image by image.
    case $what in *' does not answer') what= ;; *) what="built here: $what" ;; esac
    chosen build "" "$what"
  else
    chosen none "" "left out: $what"
  fi
}

# Decides for every external image, or for those named, and writes what was decided.
choose_images() { # <file> [<name>]...
  local file=$1 policy work json='{}' name names asked=
  shift
  policy=$(image_policy)
  check_external
  check_images_lock
  as_operator mkdir -p "$CACHE"
  if [ $# -gt 0 ]; then asked=1; else mapfile -t names < <(external_names) && set -- "${names[@]}"; fi
  work=$(mktemp -d)
  # shellcheck disable=SC2064
  trap "rm -rf '$work'" EXIT
  for name in "$@"; do
    [ -n "$(external "$name" .)" ] || die "There is no external image '$name'." "deploy/images.sh list names them."
    : >"$work/reason"
    choose_image "$name" "$policy" "$asked" "$work/reason"
    json=$(jq --arg name "$name" --argjson chosen "$CHOSEN" '.[$name] = $chosen' <<<"$json")
  done
  printf '%s\n' "$json" >"$file.new"
  chmod 644 "$file.new"
  mv -f "$file.new" "$file"
}

# The image that was pulled for a name; fails when it is built here.
pulled_image() { # <name>
  jq -er --arg name "$1" '.[$name] | select(.source == "pull") | .image' "$IMAGE_SOURCES" 2>/dev/null
}

# Runs a step of building unless its image was pulled.
unless_pulled() { # <name> <command>...
  if pulled_image "$1"; then
    echo "$1 was pulled; there is nothing to build"
  else
    shift
    "$@"
  fi
}

# Names and images of what is only ever pulled, for images.json.
pulled_only() {
  local name image
  [ -f "$IMAGE_SOURCES" ] || return 0
  while read -r name image; do
    external_row "$name" >/dev/null || printf '%s %s\n' "$name" "$image"
  done < <(jq -r 'to_entries[] | select(.value.source == "pull") | "\(.key) \(.value.image)"' "$IMAGE_SOURCES")
}

# What a person should know about where images come from; one line each.
image_notes() { jq -r 'to_entries[] | select(.value.note) | "\(.key) is \(.value.note)"' "$IMAGE_SOURCES" 2>/dev/null | ui_harmless; }

# Takes away what was pulled for the lines of the lock.
forget_pulled() {
  local name reference digest
  while read -r name reference digest; do
    ! has_image "$(repository "$reference")@$digest" || docker image rm "$(repository "$reference")@$digest" >/dev/null 2>&1 ||
      echo "the pulled $name is in use and stays"
  done < <(locked_lines)
}
