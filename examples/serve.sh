#!/bin/sh
# Serve a registered model over HTTP on this machine, and ask it with curl for all that it can do.
#
#   examples/serve.sh models:/NAME@champion [PORT]
#
# Needs mlflow, uvicorn and python in PATH (. .venv/bin/activate), and no network. To have the server alone:
#   mlflow models serve -m models:/NAME@champion --env-manager local --host 127.0.0.1 --port PORT
# KEEP=FOLDER keeps the answers there, each METHOD's as JSON.
set -eu
model=$1 port=${2:-5001} answers=${KEEP:-}
address="http://127.0.0.1:$port"
export MLFLOW_TRACKING_URI="${MLFLOW_TRACKING_URI:-sqlite:///.vaeline/mlflow.db}" MLFLOW_DISABLE_TELEMETRY=true

if curl -s -o /dev/null "$address/"; then
  echo "error: something answers at $address already: name another port" >&2
  exit 1
fi
scratch=$(mktemp -d)
mkdir -p "${answers:=$scratch/answers}"
mlflow models serve -m "$model" --env-manager local --host 127.0.0.1 --port "$port" >"$scratch/log" 2>&1 &
server=$!
finish() {
  kill $server 2>/dev/null || true
  while curl -s -o /dev/null "$address/ping"; do sleep 0.2; done # the server proper ends with what started it
  rm -r "$scratch"
}
trap finish EXIT
until curl -sf -o /dev/null "$address/ping"; do
  kill -0 $server 2>/dev/null || { tail -n 3 "$scratch/log" >&2; exit 1; }
  sleep 0.5
done

# ask METHOD INPUT [MORE PARAMS]: pixels are whole numbers from 0 to 255, [N][C][H][W]; latents are [N][Z]
ask() {
  printf '{"inputs": %s, "params": {"method": "%s"%s}}' "$2" "$1" "${3:-}" >"$scratch/request.json"
  curl -sSf "$address/invocations" -H 'Content-Type: application/json' -d "@$scratch/request.json" >"$answers/$1"
  printf '%-12s %.90s ...\n' "$1" "$(cat "$answers/$1")"
}
value() { python -c 'import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' "$@"; } # FILE KEY

# two images lie beside every registered model, as an example of what goes in
mlflow artifacts download -u "$model/serving_input_example.json" -d "$scratch" >>"$scratch/log" 2>&1
pixels=$(value "$scratch/serving_input_example.json" inputs)
ask score "$pixels"
ask encode "$pixels"
ask reconstruct "$pixels"
ask decode "$(value "$answers/encode" predictions)"
ask sample '[0]' ', "n": 2, "seed": 1'
