#!/usr/bin/env bash
# Installs the programs of `make image-check`. Ends with 1 and says why if containers can't be run.
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
if [ ${#missing[@]} != 0 ]; then
    if ! command -v apt-get >/dev/null; then
        echo "containers are not run here: install ${missing[*]} (apt has them on Debian and Ubuntu)" >&2
        exit 1
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq "${missing[@]}" >/dev/null
fi
# this machine's own files as a container, with the engine and the limits of tests/containers
limits=(--memory 256m --ulimit nofile=1024:1024 --ulimit nproc=1024:1024)
if ! podman run --rm --runtime runc "${limits[@]}" --rootfs /:O true; then
    echo "containers are not run here: the machine lets podman start none" >&2
    exit 1
fi
