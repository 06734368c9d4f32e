#!/usr/bin/env bash
# mini, from nothing to model_repository/: artwork, base, data, LoRA and head, test figures, export.
# Some hours on two cores; killed and started again, it goes on from where it was.
#
#   DATA=folder WORK=folder runs/mini.sh
#
# DATA holds cards/ (images/, labels.csv) and backgrounds/; WORK takes downloads, checkpoints and logs.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${DATA:?folder with cards/ and backgrounds/}" "${WORK:?folder for downloads and checkpoints}"
PYTHON=.venv/bin/python
REFERENT=.venv/bin/referent
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
    $PYTHON -m referent.mini.artwork "$WORK/downloads" "$WORK/artwork.npz"
fi
[ -f "$SPLIT" ] || $PYTHON -m referent.mini.cards "$DATA/cards" "$SPLIT"

export HF_HUB_OFFLINE=1
$PYTHON -m referent.mini.pretrain --artwork "$WORK/artwork.npz" --cards "$DATA/cards" --split "$SPLIT" \
    --backgrounds "$DATA/backgrounds" --out "$WORK/base" --steps "${STEPS:-4000}" --dense-steps 1000

scenes=($REFERENT data scenes --artwork "$WORK/artwork.npz" --cards "$DATA/cards" --split-file "$SPLIT" --out "$WORK/data")
[ -f "$WORK/data/train.jsonl" ] || "${scenes[@]}" --split train --count 8000 --backgrounds "$DATA/backgrounds"
[ -f "$WORK/data/val.jsonl" ] || "${scenes[@]}" --split val --set scenes --set cards --count 150
for set in cards scenes unseen_style; do
    [ -f "$WORK/$set/test.jsonl" ] || "${scenes[@]}" --split test --set "$set" --count 400 --out "$WORK/$set"
done

# the base's head goes on, so its box loss keeps the weights that it was trained with: 2 sum(L1) = 8 mean(L1)
$REFERENT train lora --base "$WORK/base/head" --data "$WORK/data" --images "$WORK/data/images" --out "$WORK/mini" \
    --steps 250 --eval-steps 125 --batch 32 --learning-rate 1e-3 --warmup 30 --l1-weight 8 --bf16 --compile
for set in cards scenes unseen_style; do
    $REFERENT evaluate jsonl --annotations "$WORK/$set/test.jsonl" --images "$WORK/$set/images" \
        --checkpoint "$WORK/mini/best" --out "$WORK/reports" --name "$set" --record "$set"
done
$PYTHON -m export "$WORK/mini/best" --name mini --to model_repository
