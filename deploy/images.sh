#!/usr/bin/env bash
# External images: which there are, whether their tags still lead to what was locked, accepting what changed. See --help.
#
# Owns: the command line. The work is in deploy/lib/external.sh and images-lock.sh.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib/all.sh"

usage() {
  cat <<'USAGE'
Usage: deploy/images.sh list | check | update <name>... | get <name>...

  list     The images in deploy/images/external.json: reference, locked digest, and whether it is on this machine.
  check    Asks the registries what the locked tags lead to now; fails when one has moved. Pulls nothing.
  update   Accepts what the tags of the named images lead to now: pulls it, tries it, and changes deploy/images.lock. Look
           at the change before you commit it. deploy/up.sh then puts the image in place.
  get      What deploy/up.sh does for an image: from here, pulled by its locked digest, or to be built. Prints which.

ASSISTANT_IMAGES says where deploy/up.sh and `get` take images from:
  auto     (default) what is here already; else pulled where a registry answers, else built
  pull     pulled; what cannot be pulled is an error
  build    built; what can only be pulled is left out
USAGE
}

list_images() {
  local name reference digest here
  while read -r name; do
    reference=$(external "$name" .reference)
    if [ "$(external "$name" .drop_in)" != true ]; then
      printf '%s  built here: %s\n' "$name" "$(external "$name" .why)"
      continue
    fi
    digest=$(locked_digest "$name" "$reference")
    here="not here"
    [ -z "$digest" ] || ! has_image "$(pulled_tag "$name" "$digest")" || here="here as $(pulled_tag "$name" "$digest")"
    printf '%s  %s\n  %s, %s\n' "$name" "$reference" "${digest:-not locked yet}" "$here"
  done < <(external_names)
}

check_tags() {
  local name reference digest status moved=0 silent=0
  if [ -z "$(locked_lines)" ]; then
    say "No tag is locked in $IMAGES_LOCK yet, so none can have moved. deploy/up.sh locks what it pulls; images.sh list shows what that may be."
    return 0
  fi
  while read -r name reference digest; do
    status=0
    ask_registry "$reference" 30 || status=$?
    if [ "$status" -ne 0 ]; then
      silent=$((silent + 1))
      printf '%s  cannot be checked: %s\n' "$name" "${REGISTRY_SAID:-the registry does not answer}"
    elif [ "$REGISTRY_DIGEST" != "$digest" ]; then
      moved=$((moved + 1))
      printf '%s  MOVED: %s is locked as %s and now leads to %s\n' "$name" "$reference" "$digest" "$REGISTRY_DIGEST"
    else
      printf '%s  as locked\n' "$name"
    fi
  done < <(locked_lines)
  [ "$moved" -eq 0 ] || die "$moved of the locked tags have moved." "Find out why before you accept one: deploy/images.sh update <name>."
  [ "$silent" -eq 0 ] || die "$silent of the locked tags could not be checked." "Give this machine a way to their registries, then run the same command again."
}

update_image() { # <name> <file for the reason>
  local name=$1 reason=$2 reference before after
  reference=$(external "$name" .reference)
  [ "$(external "$name" .drop_in)" = true ] || die "There is nothing to pull for '$name'." "deploy/images.sh list names what is pulled."
  before=$(locked_lines | awk -v name="$name" '$1 == name { print $2, $3 }')
  attempt acquire "$name" "" "$reason"
  if [ "$ATTEMPT" -ne 0 ]; then
    [ -s "$reason" ] || printf 'making an image of it did not work' >"$reason"
    die "The image $name was not updated: $(cut -d $'\f' -f 1 -z "$reason" | tr -d '\0')." "The lock file has not been changed."
  fi
  after="$reference $(locked_digest "$name" "$reference")"
  if [ "$before" = "$after" ]; then
    say "$name is as it was: $after"
    return 0
  fi
  say "$name was  ${before:-not locked}"
  say "$name is   $after"
  say "Look at the change of $IMAGES_LOCK and commit it; deploy/up.sh puts the image in place."
  if [ -n "$before" ]; then
    docker image rm "$(repository "${before% *}")@${before#* }" >/dev/null 2>&1 || true
  fi
}

command=${1:-}
case $command in
  --help | -h) usage; exit 0 ;;
  list | check) [ $# -eq 1 ] || die "images.sh $command takes no names." "deploy/images.sh --help says what there is." ;;
  update | get) [ $# -ge 2 ] || die "images.sh $command needs the name of an image." "deploy/images.sh list names them." ;;
  *) die "images.sh knows no command '$command'." "deploy/images.sh --help lists the commands." ;;
esac
become_root "$ASSISTANT_ROOT/deploy/images.sh" "$@"
shift
umask 022
find_operator
check_machine
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
check_external
check_images_lock
install -d -m 755 "$ASSISTANT_STATE"
as_operator mkdir -p "$CACHE"
docker_answers || die "Docker does not answer." "deploy/up.sh starts it."
case $command in
  list) list_images ;;
  check) check_tags ;;
  update)
    take_lock "deploy/images.sh"
    for name in "$@"; do
      [ -n "$(external "$name" .)" ] || die "There is no external image '$name'." "deploy/images.sh list names them."
      : >"$work/reason"
      update_image "$name" "$work/reason"
    done
    ;;
  get)
    take_lock "deploy/images.sh"
    (choose_images "$work/sources" "$@")
    ;;
esac
