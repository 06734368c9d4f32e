#!/usr/bin/env bash
# mini, from nothing to model_repository/: artwork, base, LoRA and head, test figures, export.
# About two hours on two cores; killed and started again, it goes on from its last checkpoint.
#
#   DATA=folder WORK=folder runs/mini.sh
#
# DATA holds cards/ (images/, labels.csv) and backgrounds/; WORK takes downloads, checkpoints and logs.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${DATA:?folder with cards/ and backgrounds/}" "${WORK:?folder for downloads and checkpoints}"
PYTHON=.venv/bin/python
SPLIT=runs/mini/cards_split.csv

make .venv/development
if [ ! -f "$WORK/artwork.npz" ]; then
    mkdir -p "$WORK/downloads"
    (
        cd "$WORK/downloads"
        apt-get download fonts-noto-color-emoji
        dpkg -x fonts-noto-color-emoji_*.deb noto
        for package in @lobehub/fluent-emoji-3d@1.1.0 @lobehub/fluent-emoji-flat@1.1.0 emoji-datasource-twitter@16.0.0; do
            archive=$(npm pack --silent "$package")
            mkdir -p "${archive%.tgz}"
            tar -xzf "$archive" -C "${archive%.tgz}"
        done
    )
    $PYTHON -m referent.data.artwork "$WORK/downloads" "$WORK/artwork.npz"
fi
[ -f "$SPLIT" ] || $PYTHON -m referent.data.cards "$DATA/cards" "$SPLIT"

data=(--artwork "$WORK/artwork.npz" --cards "$DATA/cards" --split "$SPLIT")
export HF_HUB_OFFLINE=1
$PYTHON -m referent.training.pretrain "${data[@]}" --backgrounds "$DATA/backgrounds" --out "$WORK/base" \
    --steps 2600 --dense-steps 1000
$PYTHON -m referent.training.finetune "${data[@]}" --backgrounds "$DATA/backgrounds" --out "$WORK/mini" \
    --base "$WORK/base/checkpoint" --steps 250 --eval-steps 125
$PYTHON -m referent.evaluation "$WORK/mini/checkpoint" "${data[@]}"
$PYTHON -m export "$WORK/mini/checkpoint" --name mini --to model_repository
