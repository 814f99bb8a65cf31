#!/usr/bin/env bash
# Keeps one program running where there is no systemd: respawn.sh <name> <command>...
#
# Owns: /run/assistant-daemons/<name>.{pid,child}, /var/log/assistant/<name>.log and its size.
# Does not: start twice (daemon.sh asks first), or outlive a SIGTERM: it hands that on and ends with its child.
set -uo pipefail

name=$1
shift
run=/run/assistant-daemons
log=/var/log/assistant/$name.log
most=$((32 * 1024 * 1024))
ending=
child=

say() { printf '{"respawn":"%s","at":"%s","message":"%s"}\n' "$name" "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$1" >>"$log"; }

end() {
  ending=1
  [ -z "$child" ] || kill -TERM "$child" 2>/dev/null
}
trap end TERM INT
trap '' HUP
mkdir -p "$run"
printf '%s\n' $$ >"$run/$name.pid"
trap 'rm -f "$run/$name.pid" "$run/$name.child"' EXIT

# Both sides append, so the file can be emptied under the program that writes it.
cap_log() {
  [ "$(stat -c %s "$log" 2>/dev/null || echo 0)" -lt "$most" ] || { cp "$log" "$log.1" && : >"$log"; }
}

pause=1
while [ -z "$ending" ]; do
  started=$SECONDS
  "$@" >>"$log" 2>&1 </dev/null &
  child=$!
  printf '%s\n' "$child" >"$run/$name.child"
  # A signal interrupts wait; the nap makes it return to look at the log's size.
  while kill -0 "$child" 2>/dev/null; do
    sleep 30 &
    nap=$!
    wait -n "$child" "$nap"
    kill "$nap" 2>/dev/null
    cap_log
  done
  wait "$child"
  status=$?
  child=
  [ -z "$ending" ] || break
  # What ran for a minute was well: the next failure starts again with the shortest pause.
  if [ $((SECONDS - started)) -ge 60 ]; then pause=1; fi
  say "ended with status $status; starting it again in $pause s"
  sleep "$pause" &
  wait $!
  pause=$((pause * 2))
  [ "$pause" -le 30 ] || pause=30
done
say "stopped"
