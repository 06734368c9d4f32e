#!/usr/bin/env bash
# Installs the programs for `make image-check`. Exits with 1 and the reason if containers can't be run.
set -euo pipefail
missing=()
for program in podman runc debootstrap; do
    command -v "$program" >/dev/null || missing+=("$program")
done
[ -e /usr/share/keyrings/debian-archive-keyring.gpg ] || missing+=(debian-archive-keyring)
if [ "$(id -u)" != 0 ]; then
    echo "containers are not run here: their networks and limits take root (sudo make image-check)" >&2
    exit 1
fi
if [ ${#missing[@]} = 0 ]; then exit; fi
if ! command -v apt-get >/dev/null; then
    echo "containers are not run here: install ${missing[*]}, which apt would bring on Debian and Ubuntu" >&2
    exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq "${missing[@]}" >/dev/null
