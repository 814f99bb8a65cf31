# What a person sees while a script works: numbered steps with elapsed time and a sign of life, one clear sentence when
# something fails, and where the full log is. Sourced, never run.
#
# Owns: terminal output, the step logs in $ASSISTANT_LOG_DIR. Does not: decide anything, or change the machine.
# shellcheck shell=bash

ASSISTANT_LOG_DIR=${ASSISTANT_LOG_DIR:-/var/log/assistant}
UI_STEP=0
UI_TOTAL=0
UI_STEP_PID=
UI_STARTED=$SECONDS
UI_TIMES=()
# A command that is run when the script is ended from outside, after the running step was stopped.
UI_ON_STOP=:

# Where a failing step leaves its sentence for the parent: steps run in a subshell, often as another user.
UI_FAILURE=

ui_tty() { [ -t 1 ] && [ "${TERM:-dumb}" != dumb ]; }

# Log lines come from compilers, package managers and servers: only printable ASCII reaches the terminal.
ui_harmless() { LC_ALL=C tr -cd '\11\12\40-\176'; }

ui_plan() { # <number of steps> <log directory>
  UI_TOTAL=$1
  ASSISTANT_LOG_DIR=$2
  mkdir -p "$ASSISTANT_LOG_DIR"
  UI_FAILURE=$(mktemp "${TMPDIR:-/tmp}/assistant-step.XXXXXX")
  chmod 666 "$UI_FAILURE"
  export UI_FAILURE
  trap 'rm -f "$UI_FAILURE"' EXIT
  trap 'ui_stopped 130' INT
  trap 'ui_stopped 143' TERM HUP
}

ui_stopped() {
  if [ -n "$UI_STEP_PID" ]; then
    kill -TERM -- "-$UI_STEP_PID" 2>/dev/null || true
  fi
  printf '\nStopped. Nothing is half done that the next run does not finish.\n' >&2
  $UI_ON_STOP
  exit "$1"
}

# One sentence that says what is wrong, one that says what to do. Ends the script, or the step that calls it.
die() { # <what> [<what to do>]
  if [ -n "${UI_IN_STEP:-}" ]; then
    printf '%s\f%s' "$1" "${2:-}" >"$UI_FAILURE"
  else
    printf 'Error: %s\n' "$1" >&2
    [ -z "${2:-}" ] || printf 'What to do: %s\n' "$2" >&2
  fi
  exit 1
}

say() { printf '%s\n' "$*"; }

ui_duration() { # <seconds>
  if [ "$1" -ge 60 ]; then printf '%d min %02d s' $(($1 / 60)) $(($1 % 60)); else printf '%d s' "$1"; fi
}

# What the log's end says about a failure that the failing command did not put into a sentence.
ui_explain() { # <log>
  local tail_text
  tail_text=$(tail -n 60 "$1" 2>/dev/null || true)
  case $tail_text in
    *'No space left on device'* | *'not enough free space'* | *'Disk quota exceeded'*)
      printf 'The disk is full.\fFree some space (df -h shows where it is missing) and run the same command again.\n' ;;
    *'Could not get lock'* | *'is another process using it'*)
      printf 'Another program is installing packages at this moment.\fWait until it has ended and run the same command again.\n' ;;
    *'Temporary failure resolving'* | *'Could not resolve host'* | *'no such host'* | *'Temporary failure in name resolution'* | *'Network is unreachable'*)
      printf 'The network cannot be reached, and this step has something to download.\fCheck the connection and the proxy settings, then run the same command again.\n' ;;
    *'Cannot connect to the Docker daemon'*)
      printf 'Docker ended in the middle of this step.\fLook at %s/dockerd.log (or journalctl -u docker), then run the same command again.\n' "$ASSISTANT_LOG_DIR" ;;
    *'Cannot allocate memory'* | *'signal: 9, SIGKILL'*)
      printf 'The machine ran out of memory.\fGive it at least 4 GB, or stop something else, and run the same command again.\n' ;;
  esac
}

# Runs a function or command as one numbered step: output to its log, progress to the terminal.
# Variables that it sets are lost (it runs in a subshell); results are files.
step() { # <title> <log name> <command>...
  local title=$1 log=$ASSISTANT_LOG_DIR/$2.log started=$SECONDS rc=0 beat next=5 line pause=0.1 advice
  shift 2
  UI_STEP=$((UI_STEP + 1))
  local label
  label=$(printf '[%2d/%d] %s' "$UI_STEP" "$UI_TOTAL" "$title")
  [ ! -f "$log" ] || mv -f "$log" "$log.1"
  : >"$log"
  : >"$UI_FAILURE"
  if ui_tty; then printf '%s' "$label"; else printf '%s\n' "$label"; fi
  # A process group of its own, so that an interrupt ends the whole step and nothing else.
  set -m
  (set +m; UI_IN_STEP=1; export UI_IN_STEP; trap - EXIT INT TERM HUP; "$@") >>"$log" 2>&1 </dev/null &
  UI_STEP_PID=$!
  set +m
  while kill -0 "$UI_STEP_PID" 2>/dev/null; do
    sleep "$pause"
    beat=$((SECONDS - started))
    [ "$beat" -lt 1 ] || pause=0.5
    if ui_tty; then
      line=$(tail -c 1000 "$log" | ui_harmless | { grep -v '^ *$' || true; } | tail -n 1 | cut -c 1-60)
      printf '\r\033[K%s  %s  %s' "$label" "$(ui_duration "$beat")" "$line"
    elif [ "$beat" -ge "$next" ]; then
      line=$(tail -c 1000 "$log" | ui_harmless | { grep -v '^ *$' || true; } | tail -n 1 | cut -c 1-90)
      printf '        ... %s  %s\n' "$(ui_duration "$beat")" "$line"
      next=$((beat + 5))
    fi
  done
  wait "$UI_STEP_PID" || rc=$?
  UI_STEP_PID=
  beat=$((SECONDS - started))
  UI_TIMES+=("$beat"$'\t'"$title")
  if [ "$rc" -eq 0 ]; then
    if ui_tty; then printf '\r\033[K%s  done in %s\n' "$label" "$(ui_duration "$beat")"
    else printf '        done in %s\n' "$(ui_duration "$beat")"; fi
    return 0
  fi
  if ui_tty; then printf '\r\033[K%s  FAILED after %s\n' "$label" "$(ui_duration "$beat")"
  else printf '        FAILED after %s\n' "$(ui_duration "$beat")"; fi
  [ -s "$UI_FAILURE" ] || ui_explain "$log" >"$UI_FAILURE"
  [ -s "$UI_FAILURE" ] || printf '%s did not work.\fRead the last lines below; after mending the cause run the same command again.\n' "$title" >"$UI_FAILURE"
  {
    # A form feed stands between what is wrong and what to do.
    printf '\nError: %s\n' "$(cut -d $'\f' -f 1 -s -z "$UI_FAILURE" | ui_harmless)"
    advice=$(cut -d $'\f' -f 2 -s -z "$UI_FAILURE" | ui_harmless)
    [ -z "$advice" ] || printf 'What to do: %s\n' "$advice"
    if [ -s "$log" ]; then
      printf '\nThe last lines of %s:\n' "$log"
      tail -n 12 "$log" | ui_harmless | cut -c 1-200 | sed 's/^/    /'
    fi
  } >&2
  exit 1
}

# For the record of docs/benchmarks.md: one line per step, seconds and title.
ui_write_times() { # <file>
  { printf '%s\ttotal\n' $((SECONDS - UI_STARTED)); printf '%s\n' "${UI_TIMES[@]}"; } >"$1"
}
