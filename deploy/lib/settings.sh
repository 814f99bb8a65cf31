# Secrets and tier-supervisor's own settings, for a drill or for real. Sourced, never run.
#
# Owns: $ASSISTANT_STATE/<mode>/secrets, /etc/assistant/supervisor.json. Does not: print a secret's value, or put one
# anywhere but into its file. What `.env` means is tier-supervisor's to say (import-env); here it is only asked early
# whether something is plainly missing, before an hour is spent; check_files asks tier-supervisor as soon as it is compiled.
# shellcheck shell=bash

LIVE_SETTINGS=/etc/assistant/live.json
ENV_FILE=${ASSISTANT_ENV_FILE:-$ASSISTANT_ROOT/.env}
# What became of each variable of .env, for the person and for settings_notes.
ENV_REPORT=$ASSISTANT_STATE/live/env-report

# In the drill: who its Telegram bot answers.
DRILL_TELEGRAM_USER=1000001

# In which mode the stack of this machine runs; empty when it does not.
running_mode() {
  local mode
  mode=$(jq -r '.mode // empty' "$ASSISTANT_SETTINGS" 2>/dev/null) || return 0
  if daemon_running tier-supervisor || [ -n "$(timeout 10 docker ps -q --filter label=assistant.managed=true 2>/dev/null)" ]; then
    printf '%s\n' "$mode"
  fi
}

random_word() { # <bytes>
  head -c "$1" /dev/urandom | base64 -w 0 | tr '+/' '-_' | tr -d '='
}

make_drill_secrets() {
  local directory=$ASSISTANT_STATE/drill/secrets name
  install -d -m 700 "$ASSISTANT_STATE/drill" "$directory"
  for name in marvin_api_key model_api_key telegram_bot_token; do
    [ ! -s "$directory/$name" ] || continue
    # Telegram's tokens have a form, <number>:<35 characters>, that programs check.
    (umask 077 && case $name in
      telegram_bot_token) printf '%s:%.35s' 1000000001 "$(random_word 32)" ;;
      *) random_word 32 ;;
    esac >"$directory/$name.new")
    mv -f "$directory/$name.new" "$directory/$name"
    echo "made $directory/$name"
  done
}

# What .env has for a variable: nothing, example (it still says what the example says) or own. The strict reading is
# import-env's.
env_has() { # <name>
  local value=
  [ ! -f "$ENV_FILE" ] ||
    value=$(sed -n "s/^[[:space:]]*\(export[[:space:]]\+\)\{0,1\}$1=[[:space:]]*//p" "$ENV_FILE" | tail -n 1 | tr -d '\r')
  value=$(printf '%s' "$value" | tr 'A-Z_' 'a-z-')
  case $value in
    '' | '#'* | '""'* | "''"*) echo nothing ;;
    *replace-with* | *change-me* | *changeme* | placeholder* | [\"\']placeholder* | '<'*'>' | [\"\']'<'*'>'[\"\']) echo example ;;
    *) echo own ;;
  esac
}

env_gives() { [ "$(env_has "$1")" = own ]; } # <name>

# Says of those variables that still have the example's value that they do.
still_example() { # <name>...
  local name
  for name in "$@"; do
    [ "$(env_has "$name")" != example ] || printf '\n      (%s is in %s, but still has the value of the example)' "$name" "$ENV_FILE"
  done
}

live_secret() { [ -s "$ASSISTANT_STATE/live/secrets/$1" ]; } # <name>

# Whether a tier uses Amazing Marvin, as far as can be seen without reading the files as tier-supervisor does.
tiers_use_marvin() {
  local file=$ASSISTANT_ROOT/tiers.yaml folder
  if grep -Eq '^[^#]*secret:[[:space:]]*marvin_api_key' "$file" 2>/dev/null; then return 0; fi
  while read -r folder; do
    if grep -Eq '^[[:space:]]+marvin:' "$ASSISTANT_ROOT/$folder/registry.yaml" 2>/dev/null; then return 0; fi
  done < <(sed -n "s/^[^#]*mcp_dir:[[:space:]]*['\"]\{0,1\}\([^#'\"[:space:]]*\).*/\1/p" "$file" 2>/dev/null)
  return 1
}

tiers_file() { # <mode>
  if [ "$1" = drill ]; then printf '%s' "$ASSISTANT_ROOT/deploy/drill/tiers.yaml"; else printf '%s' "$ASSISTANT_ROOT/tiers.yaml"; fi
}

# Fields at the left edge of tiers.yaml that there are not: all that can be seen of it without a program of ours. A name is
# shown only where it cannot be a secret in the wrong place.
check_tiers_fields() { # <mode>
  local file problems
  file=$(tiers_file "$1")
  [ -f "$file" ] || return 0
  problems=$(LC_ALL=C awk '
    /^[A-Za-z_][A-Za-z0-9_.-]*[ \t]*:([ \t]|\r?$)/ {
      key = $0
      sub(/[ \t]*:.*/, "", key)
      if (key == "tiers" || key == "defaults") next
      if (key !~ /^[a-z_-]+$/ || length(key) > 40) key = "(not shown)"
      printf "\n  - line %d: tiers.yaml has no field %s at the left edge", NR, key
    }' "$file" 2>/dev/null) || return 0
  [ -z "$problems" ] || die "$file is not right:$problems" \
    "Its fields are tiers and defaults; what belongs to a tier stands below its name, indented. Then run the same command again."
}

# The loopback ports that gates of the stack will listen on, a line each with what is to be reached there; those of tiers as
# far as they can be seen without reading tiers.yaml as tier-supervisor does.
gate_ports() { # <mode>
  printf '%s\n' "4222 the stack's NATS" "16686 the stack's traces"
  sed 's/#.*//' "$(tiers_file "$1")" | grep -oE '(^|[^a-z_])(mcp_)?port:[[:space:]]*[0-9]{4,5}' | sed 's/.*[^0-9]\([0-9]*\)$/\1 a page of a tier/' || true
}

# Whoever else listens there would be taken for the stack by the operator's commands, or by the browser.
check_ports() { # <mode>
  local port what holder taken=
  while read -r port what; do
    holder=$(ss -Hltnp "sport = :$port" 2>/dev/null | awk '$4 ~ /^(127\.0\.0\.1|0\.0\.0\.0|\*|\[::\]):/' | head -n 1)
    [ -n "$holder" ] || continue
    holder=$(sed -n 's/.*users:((\(".*"\),pid=\([0-9]*\).*/ by \1, process \2/p' <<<"$holder")
    taken+=$(printf '\n  - port %s of this machine is taken%s; %s is to be reached there' "$port" "$holder" "$what")
  done < <(gate_ports "$1")
  [ -z "$taken" ] || die "What the stack needs is in use:$taken" \
    "Stop that program (ss -ltnp shows all of them), or give the tier another port in $(tiers_file "$1"); then run the same command again."
}

# Everything that a live stack plainly needs from its owner, said at once.
check_live() {
  local missing=() file mode
  if [ -e "$ENV_FILE" ] && [ ! -f "$ENV_FILE" ]; then missing+=("$ENV_FILE is not a file"); fi
  if [ -f "$LIVE_SETTINGS" ]; then
    if command -v jq >/dev/null 2>&1 && ! jq -e 'type == "object" and (.model == null or ((.model.base_url | type == "string") and (.model.models | type == "object" and length > 0)))' "$LIVE_SETTINGS" >/dev/null 2>&1; then
      missing+=("$LIVE_SETTINGS must be JSON; its model needs base_url (text) and models (name for the tiers -> name at the provider)")
    fi
  elif ! env_gives PRIVATEMODE_API_KEY && ! live_secret privatemode_api_key && ! env_gives OPENAI_BASE_URL &&
    ! jq -e '.model != null' "$ASSISTANT_STATE/live/env.json" >/dev/null 2>&1; then
    missing+=("a model. In $ENV_FILE, either PRIVATEMODE_API_KEY=<key> (prompts leave only through an attested enclave), or
      OPENAI_BASE_URL=<https://.../v1>, OPENAI_MODEL=<its name there> and, where it asks for one, OPENAI_API_KEY=<key>
      (any OpenAI-compatible endpoint, also one at home; not confidential). $LIVE_SETTINGS of earlier versions works too$(
      still_example PRIVATEMODE_API_KEY OPENAI_BASE_URL)")
  fi
  if env_gives OPENAI_BASE_URL && ! env_gives OPENAI_MODEL; then
    missing+=("OPENAI_MODEL in $ENV_FILE: which of the models at OPENAI_BASE_URL is meant$(still_example OPENAI_MODEL)")
  fi
  if env_gives OPENAI_BASE_URL && [ "$(env_has OPENAI_API_KEY)" = example ]; then
    missing+=("OPENAI_API_KEY in $ENV_FILE still has the value of the example: write the key, or remove the line where the
      endpoint asks for none")
  fi
  if env_gives TELEGRAM_BOT_TOKEN && ! env_gives TELEGRAM_ALLOWED_USER_IDS; then
    missing+=("TELEGRAM_ALLOWED_USER_IDS in $ENV_FILE: the numeric ids of the people whom the bot may answer, separated by commas$(
      still_example TELEGRAM_ALLOWED_USER_IDS)")
  fi
  if env_gives TELEGRAM_ALLOWED_USER_IDS && [ "$(env_has TELEGRAM_BOT_TOKEN)" = example ]; then
    missing+=("TELEGRAM_BOT_TOKEN in $ENV_FILE still has the value of the example: write what @BotFather gave you, or remove both lines")
  fi
  if tiers_use_marvin && ! env_gives MARVIN_API_KEY && ! env_gives AMAZING_MARVIN_API_KEY && ! live_secret marvin_api_key; then
    missing+=("the API token of Amazing Marvin, which tiers.yaml uses: MARVIN_API_KEY=<token> in $ENV_FILE, or take marvin out of
      registry.yaml in the MCP folders that tiers.yaml names$(still_example MARVIN_API_KEY AMAZING_MARVIN_API_KEY)")
  fi
  for file in "$ASSISTANT_STATE"/live/secrets/*; do
    [ -f "$file" ] || continue
    mode=$(stat -c '%a %u' "$file")
    case $mode in
      '600 0' | '400 0') ;;
      *) missing+=("$file has mode and owner $mode; it must be readable by root alone:  sudo chown root $file && sudo chmod 600 $file") ;;
    esac
  done
  [ -f "$ASSISTANT_ROOT/tiers.yaml" ] || missing+=("$ASSISTANT_ROOT/tiers.yaml: it declares the tiers. $ASSISTANT_ROOT/deploy/drill/tiers.yaml shows the form")
  [ "${#missing[@]}" -gt 0 ] || return 0
  die "The live stack needs accounts, and something is missing:$(printf '\n  - %s' "${missing[@]}")" \
    "Supply these ($ASSISTANT_ROOT/.env.example shows the form), or try everything without any account first: deploy/up.sh --drill"
}

# Takes .env over, where there is one. Without it, what an earlier one said still holds.
import_env() {
  local said
  install -d -m 700 "$ASSISTANT_STATE/live" "$ASSISTANT_STATE/live/secrets"
  [ -f "$ENV_FILE" ] || return 0
  if ! said=$("$ASSISTANT_LIBEXEC/tier-supervisor" import-env --file "$ENV_FILE" --state-dir "$ASSISTANT_STATE/live" --report 2>&1); then
    die "$ENV_FILE is not right:
$said" "Mend these lines, then run the same command again."
  fi
  case $(stat -c %a "$ENV_FILE") in
    *[1-7][0-7] | *[0-7][1-7]) said+=$'\n'"note: others can read $ENV_FILE; run: chmod 600 $ENV_FILE" ;;
  esac
  (umask 077 && printf '%s\n' "$said" >"$ENV_REPORT.new")
  mv -f "$ENV_REPORT.new" "$ENV_REPORT"
  cat "$ENV_REPORT"
}

# What the person should still do about .env, one line each; for up.sh's last screen. What there is to know about
# tiers.yaml, the status says.
settings_notes() { # <mode>
  [ "$1" = live ] && [ -f "$ENV_FILE" ] && [ -s "$ENV_REPORT" ] || return 0
  grep -E 'remove the line|: not known;|^note: ' "$ENV_REPORT" | sed "s|^line |$ENV_FILE line |" || true
}

# Images of MCP folders that are on this machine though the stack neither built nor pulled them: by their id, so that a
# tag that moves changes nothing. What is not here stays unknown, and tier-supervisor says at which line it is named.
take_catalogue_images() { # <tiers file>
  local image id json
  json=$(cat "$IMAGES_FILE")
  while read -r image; do
    if jq -e --arg name "$image" 'has($name)' <<<"$json" >/dev/null; then continue; fi
    id=$(docker image inspect --format '{{.Id}}' "$image" 2>/dev/null) || continue
    echo "image $image is on this machine: $id"
    json=$(jq --arg name "$image" --arg id "$id" '.[$name] = $id' <<<"$json")
  done < <("$ASSISTANT_LIBEXEC/tier-supervisor" catalogue-images --tiers-file "$1")
  printf '%s\n' "$json" >"$IMAGES_FILE.new"
  chmod 644 "$IMAGES_FILE.new"
  mv -f "$IMAGES_FILE.new" "$IMAGES_FILE"
}

# Resolvers of the machine that are not its own loopback: those Squid can ask.
machine_resolvers() {
  local file
  for file in /run/systemd/resolve/resolv.conf /etc/resolv.conf; do
    [ -r "$file" ] || continue
    awk '$1 == "nameserver" && $2 ~ /^[0-9.]+$/ && $2 !~ /^127\./ { print $2 }' "$file"
  done | awk '!seen[$0]++'
}

# Which trust anchors, resolvers, models and bots: the drill's own, or the owner's. live.json is what came before .env, and
# says what .env does not.
mode_settings() { # <mode> <state directory>
  if [ "$1" = drill ]; then
    jq -n --arg state "$2" --arg tiers "$(tiers_file drill)" --argjson user "$DRILL_TELEGRAM_USER" '{
      tiers_file: $tiers, dns_servers: ["198.51.100.53"],
      upstream_roots: ["\($state)/doubles/ca.pem"], drill_table: 8787,
      model: {base_url: "https://model.drill.example/v1", key_secret: "model_api_key",
        models: {assistant: "drill-model", thinker: "drill-model"}}, tee: null,
      telegram: [{name: "telegram", token_secret: "telegram_bot_token", allowed_user_ids: [$user]}], otlp_export: null}'
  else
    local live='{}' env='{}'
    [ ! -f "$LIVE_SETTINGS" ] || live=$(cat "$LIVE_SETTINGS")
    [ ! -f "$2/env.json" ] || env=$(cat "$2/env.json")
    jq -n --arg tiers "$(tiers_file live)" --arg resolvers "$(machine_resolvers)" --argjson live "$live" --argjson env "$env" \
      --argjson keyed "$(live_secret model_api_key && echo true || echo false)" '{
      tiers_file: $tiers,
      dns_servers: ($live.dns_servers // ($resolvers | split("\n") | map(select(. != "")))),
      upstream_roots: [], drill_table: null,
      model: ($env.model // (if $live.model then $live.model | {base_url, models,
        key_secret: (if $keyed then "model_api_key" else null end)} else null end)),
      tee: $env.tee, telegram: ($env.telegram // []), otlp_export: $env.otlp_export}'
  fi
}

# Prints supervisor.json.
supervisor_settings() { # <mode> <pool> <state directory>
  mode_settings "$1" "$3" | jq --arg mode "$1" --arg root "$ASSISTANT_ROOT" --arg state "$3" --arg pool "$2" \
    --arg images "$ASSISTANT_STATE/images.json" \
    --arg bin "$ASSISTANT_LIBEXEC" --arg user "$STACK_USER" --argjson uid "$STACK_UID" --arg home "$STACK_HOME" '
    {mode: $mode, tiers_file, allowlist_file: "\($root)/squid/allowlist.txt",
      squid_template: "\($root)/squid/squid.conf.template", images_file: $images,
      state_dir: $state, run_dir: "/run/assistant", pool: $pool,
      operator: {user: $user, uid: $uid, home: $home}, bin_dir: $bin, dns_servers, upstream_roots, drill_table, model,
      tee, telegram, otlp_export, otlp: true, log_filter: "info"}'
}

# What a person wrote, checked by the program that will read it, as soon as there is one: before anything else is compiled
# and before any image is made. Changes nothing: .env is taken over into a directory of its own, which goes again.
check_files() { # <program> <mode> <pool>
  local program=$1 mode=$2 state=$ASSISTANT_STATE/$2 work said
  # Of a run that was cut off. One script at a time comes here.
  rm -rf "$ASSISTANT_STATE"/check.??????
  work=$(mktemp -d "$ASSISTANT_STATE/check.XXXXXX")
  # shellcheck disable=SC2064
  trap "rm -rf '$work'" EXIT
  if [ "$mode" = live ]; then
    install -d -m 700 "$work/secrets"
    # Links: no secret lies in two places, and import-env puts a new file in place of an old one.
    [ ! -d "$state/secrets" ] || cp -al "$state/secrets/." "$work/secrets/"
    [ ! -f "$state/env.json" ] || cp -p "$state/env.json" "$work/env.json"
    if [ -f "$ENV_FILE" ] && ! said=$("$program" import-env --file "$ENV_FILE" --state-dir "$work" 2>&1); then
      die "$ENV_FILE is not right:
$said" "Mend these lines, then run the same command again."
    fi
    state=$work
  else
    make_drill_secrets
  fi
  supervisor_settings "$mode" "$3" "$state" >"$work/supervisor.json"
  if ! said=$("$program" check-config --before-images --config "$work/supervisor.json" 2>&1); then
    said=${said//"$work/supervisor.json"/the settings}
    said=${said//"$work"/"$ASSISTANT_STATE/$mode"}
    printf '%s\n' "$said"
    die "The configuration is not right: $(printf '%s' "$said" | tail -n 20)" "Mend it, then run the same command again."
  fi
  printf '%s\n' "$said"
}

write_settings() { # <mode> <pool>
  local new=$ASSISTANT_SETTINGS.wanted
  [ "$1" = drill ] || import_env
  install -d -m 755 "$(dirname "$ASSISTANT_SETTINGS")"
  supervisor_settings "$1" "$2" "$ASSISTANT_STATE/$1" >"$new"
  install -d -m 700 "$ASSISTANT_STATE/$1"
  install_changed "$new" "$ASSISTANT_SETTINGS" 644 || echo "settings have not changed"
  take_catalogue_images "$(jq -r .tiers_file "$ASSISTANT_SETTINGS")"
  rm -f "$new"
}
