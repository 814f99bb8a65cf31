# deploy/images.lock: which digest each external image must have. Sourced, never run.
#
# Owns: that file: reading, checking, changing a line. Does not: ask a registry, or decide what is accepted (external.sh).
# shellcheck shell=bash

IMAGES_LOCK=${ASSISTANT_IMAGES_LOCK:-$ASSISTANT_ROOT/deploy/images.lock}

is_digest() { [[ $1 =~ ^sha256:[0-9a-f]{64}$ ]]; } # <text>

# "<name> <reference> <digest>", line by line.
locked_lines() {
  [ ! -f "$IMAGES_LOCK" ] || { grep -Ev '^[[:space:]]*(#|$)' "$IMAGES_LOCK" || true; }
}

# Refuses a file that is not what we write: a line that is passed over would be a digest that is not checked.
check_images_lock() {
  local problems
  [ -f "$IMAGES_LOCK" ] || return 0
  problems=$(awk '
    /^[[:space:]]*(#|$)/ { next }
    NF != 3 { printf "line %d is not <name> <reference> <digest>. ", NR; next }
    $3 !~ /^sha256:[0-9a-f]+$/ || length($3) != 71 { printf "line %d has no sha256 digest of 64 digits. ", NR }
    seen[$1]++ { printf "line %d names %s again. ", NR, $1 }' "$IMAGES_LOCK" | ui_harmless)
  [ -z "$problems" ] || die "$IMAGES_LOCK is not right: $problems" \
    "Take it back to the last commit, or remove the line; deploy/images.sh update <name> writes a new one."
}

# The digest that a reference must have; nothing when it was never pulled. A line for another reference is of an older
# external.json and says nothing about this one.
locked_digest() { # <name> <reference>
  locked_lines | awk -v name="$1" -v reference="$2" '$1 == name && $2 == reference { print $3 }'
}

# Puts a line in place of the image's old one. The file belongs to whoever owns the checkout.
lock_digest() { # <name> <reference> <digest>
  local new
  if [ "$(locked_digest "$1" "$2")" = "$3" ]; then return 0; fi
  new=$(mktemp "$IMAGES_LOCK.XXXXXX") || die "$IMAGES_LOCK cannot be written." "Make $(dirname "$IMAGES_LOCK") writable, then run the same command again."
  {
    grep '^#' "$IMAGES_LOCK" 2>/dev/null || true
    { locked_lines | awk -v name="$1" '$1 != name'; printf '%s %s %s\n' "$1" "$2" "$3"; } | LC_ALL=C sort
  } >"$new"
  chmod 644 "$new"
  chown --reference="$(dirname "$IMAGES_LOCK")" "$new"
  mv -f "$new" "$IMAGES_LOCK"
  echo "locked $1: $2 is $3"
}
