# Secrets and tier-supervisor's own settings, for a drill or for real. Sourced, never run.
#
# Owns: $ASSISTANT_STATE/<mode>/secrets, /etc/assistant/supervisor.json. Does not: read a secret's value, or put one
# anywhere but into its file.
# shellcheck shell=bash

SECRETS=(marvin_api_key model_api_key)
LIVE_SETTINGS=/etc/assistant/live.json

# In which mode the stack of this machine runs; empty when it does not.
running_mode() {
  local mode
  mode=$(jq -r '.mode // empty' "$ASSISTANT_SETTINGS" 2>/dev/null) || return 0
  if daemon_running tier-supervisor || [ -n "$(timeout 10 docker ps -q --filter label=assistant.managed=true 2>/dev/null)" ]; then
    printf '%s\n' "$mode"
  fi
}

make_drill_secrets() {
  local directory=$ASSISTANT_STATE/drill/secrets name
  install -d -m 700 "$ASSISTANT_STATE/drill" "$directory"
  for name in "${SECRETS[@]}"; do
    [ ! -s "$directory/$name" ] || continue
    (umask 077 && head -c 32 /dev/urandom | base64 | tr '+/' '-_' | tr -d '=\n' >"$directory/$name.new")
    mv -f "$directory/$name.new" "$directory/$name"
    echo "made $directory/$name"
  done
}

# Everything that a live stack needs from its owner, said at once.
check_live() {
  local missing=() name file mode
  for name in "${SECRETS[@]}"; do
    file=$ASSISTANT_STATE/live/secrets/$name
    if [ ! -s "$file" ]; then
      missing+=("$file is missing or empty. Put the $(secret_meaning "$name") into it:
      sudo install -d -m 700 $ASSISTANT_STATE/live $ASSISTANT_STATE/live/secrets && sudo sh -c 'umask 077; cat > $file'")
      continue
    fi
    mode=$(stat -c '%a %u' "$file")
    case $mode in
      '600 0' | '400 0') ;;
      *) missing+=("$file has mode and owner $mode; it must be readable by root alone:  sudo chown root $file && sudo chmod 600 $file") ;;
    esac
  done
  if [ ! -f "$LIVE_SETTINGS" ]; then
    missing+=("$LIVE_SETTINGS is missing. It says where the model is, for example:
      {\"model\": {\"base_url\": \"https://llm.example.org/v1\", \"models\": {\"assistant\": \"name-of-the-model-there\"}}}")
  elif command -v jq >/dev/null 2>&1 && ! jq -e '(.model.base_url | type == "string") and (.model.models | type == "object" and length > 0)' "$LIVE_SETTINGS" >/dev/null 2>&1; then
    missing+=("$LIVE_SETTINGS must be JSON with model.base_url (text) and model.models (name for the tiers -> name at the provider)")
  fi
  [ -f "$ASSISTANT_ROOT/tiers.yaml" ] || missing+=("$ASSISTANT_ROOT/tiers.yaml is missing: it declares the tiers. $ASSISTANT_ROOT/deploy/drill/tiers.yaml shows the form")
  [ "${#missing[@]}" -gt 0 ] || return 0
  die "The live stack needs accounts, and something is missing:$(printf '\n  - %s' "${missing[@]}")" \
    "Supply these, or try everything without any account first: deploy/up.sh --drill"
}

secret_meaning() { # <name>
  case $1 in
    marvin_api_key) echo "API token of Amazing Marvin" ;;
    model_api_key) echo "API key of the model provider" ;;
    *) echo "value" ;;
  esac
}

# Resolvers of the machine that are not its own loopback: those Squid can ask.
machine_resolvers() {
  local file
  for file in /run/systemd/resolve/resolv.conf /etc/resolv.conf; do
    [ -r "$file" ] || continue
    awk '$1 == "nameserver" && $2 ~ /^[0-9.]+$/ && $2 !~ /^127\./ { print $2 }' "$file"
  done | awk '!seen[$0]++'
}

# Which trust anchors, resolvers and models: the drill's own, or the owner's.
mode_settings() { # <mode>
  if [ "$1" = drill ]; then
    jq -n --arg state "$ASSISTANT_STATE/drill" --arg root "$ASSISTANT_ROOT" '{
      tiers_file: "\($root)/deploy/drill/tiers.yaml", dns_servers: ["198.51.100.53"],
      upstream_roots: ["\($state)/doubles/ca.pem"], drill_table: 8787,
      model: {base_url: "https://model.drill.example/v1", key_secret: "model_api_key",
        models: {assistant: "drill-model", thinker: "drill-model"}}}'
  else
    jq --arg root "$ASSISTANT_ROOT" --arg resolvers "$(machine_resolvers)" '{
      tiers_file: "\($root)/tiers.yaml", dns_servers: (.dns_servers // ($resolvers | split("\n") | map(select(. != "")))),
      upstream_roots: [], drill_table: null,
      model: {base_url: .model.base_url, key_secret: "model_api_key", models: .model.models}}' "$LIVE_SETTINGS"
  fi
}

write_settings() { # <mode> <pool>
  local new=$ASSISTANT_SETTINGS.wanted
  install -d -m 755 "$(dirname "$ASSISTANT_SETTINGS")"
  mode_settings "$1" | jq --arg mode "$1" --arg root "$ASSISTANT_ROOT" --arg state "$ASSISTANT_STATE" --arg pool "$2" \
    --arg bin "$ASSISTANT_LIBEXEC" --arg user "$OPERATOR" --argjson uid "$OPERATOR_UID" --arg home "$OPERATOR_HOME" '
    {mode: $mode, tiers_file, allowlist_file: "\($root)/squid/allowlist.txt",
      squid_template: "\($root)/squid/squid.conf.template", images_file: "\($state)/images.json",
      state_dir: "\($state)/\($mode)", run_dir: "/run/assistant", pool: $pool,
      operator: {user: $user, uid: $uid, home: $home}, bin_dir: $bin, dns_servers, upstream_roots, drill_table, model,
      otlp: true, log_filter: "info"}' >"$new"
  install -d -m 700 "$ASSISTANT_STATE/$1"
  install_changed "$new" "$ASSISTANT_SETTINGS" 644 || echo "settings have not changed"
  rm -f "$new"
}
