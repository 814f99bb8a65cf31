# Versions of everything that is built or pulled from outside, in one place. Sourced by the scripts in deploy/.
# shellcheck shell=bash disable=SC2034

ZEROCLAW_VERSION=0.8.7
# acp, gateway and the agent loop only: messengers are channel-bridge's work, so the agent is built without them.
ZEROCLAW_FEATURES=agent-runtime,gateway,channel-webhook,schema-export
# Over the files of its dashboard (web/dist of the published crate), as gather_zeroclaw_dashboard counts it.
ZEROCLAW_DASHBOARD_SHA256=cc4e01f3945d45eba6251ab90cc22e566b2472d8ae21f02e019438305f177e93

NATS_SERVER_VERSION=v2.15.2
NATS_CLI_VERSION=v0.5.1
GRPCURL_VERSION=v1.9.4
JAEGER_VERSION=v1.62.0
OTELCOL_VERSION=v0.161.0
CARGO_DENY_VERSION=0.19.9
MARVIN_MCP_VERSION=1.0.1
LITELLM_VERSION=1.106.2
# In the sandbox. The last pnpm that runs on the Node.js of every release we know.
UV_VERSION=0.13.9
PNPM_VERSION=10.34.9
