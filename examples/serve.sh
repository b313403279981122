#!/bin/sh
# Serve a registered model over HTTP on this machine, and ask it with curl for all that it can do.
#
#   examples/serve.sh models:/NAME@champion [PORT]
#
# Needs mlflow and uvicorn in PATH (. .venv/bin/activate), and no network. In a second shell the server alone is
#   mlflow models serve -m models:/NAME@champion --env-manager local --host 127.0.0.1 --port PORT
set -eu
model=$1 port=${2:-5001}
export MLFLOW_TRACKING_URI="${MLFLOW_TRACKING_URI:-sqlite:///.vaeline/mlflow.db}" MLFLOW_DISABLE_TELEMETRY=true
here=$(mktemp -d)

mlflow models serve -m "$model" --env-manager local --host 127.0.0.1 --port "$port" >"$here/log" 2>&1 &
server=$!
trap 'kill $server; wait $server 2>/dev/null || true; rm -r "$here"' EXIT
until curl -sf "http://127.0.0.1:$port/ping" >/dev/null; do
  kill -0 $server 2>/dev/null || { tail -n 3 "$here/log" >&2; trap - EXIT; exit 1; }
  sleep 1
done

# The example that is stored beside the model holds two images: {"inputs": [N][C][H][W], "params": ...}
mlflow artifacts download -u "$model/serving_input_example.json" -d "$here" >/dev/null 2>&1
pixels=$(python -c 'import json, sys; print(json.load(open(sys.argv[1]))["inputs"])' "$here/serving_input_example.json")

ask() { # METHOD INPUT [MORE PARAMS]
  printf '{"inputs": %s, "params": {"method": "%s"%s}}' "$2" "$1" "${3:-}" >"$here/request.json"
  curl -sSf "http://127.0.0.1:$port/invocations" -H 'Content-Type: application/json' -d "@$here/request.json" >"$here/$1"
  printf '%-12s %.80s ...\n' "$1" "$(cat "$here/$1")"
}
ask score "$pixels"
ask encode "$pixels"
ask reconstruct "$pixels"
ask decode "$(python -c 'import json, sys; print(json.load(open(sys.argv[1]))["predictions"])' "$here/encode")"
ask sample '[0]' ', "n": 2, "seed": 1'
