#!/usr/bin/env bash
# mini, mini-all and mini-text into model_repository/: artwork, one trunk, data, what each kind of answer needs, test
# figures, export. Three hours on two cores; killed and started again, it goes on from where it was.
#
#   DATA=folder WORK=folder runs/mini.sh
#   DATA=folder WORK=folder FROM=nothing STEPS=9000 runs/mini.sh
#
# DATA holds cards/ (images/, labels.csv) and backgrounds/; WORK takes downloads, checkpoints and logs. The trunk and its
# heads start from mini and mini-all as published in FROM, or from random weights with FROM=nothing. A start from FROM
# takes LEARNING_RATE, and a SEED that no run before it had: otherwise it learns the same scenes again.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${DATA:?folder with cards/ and backgrounds/}" "${WORK:?folder for downloads and checkpoints}"
FROM=${FROM:-model_repository}
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
        iconify=(noto@1.2.9 noto-v1@1.2.5 emojione@1.2.3 emojione-monotone@1.2.1 fxemoji@1.2.2
            fluent-emoji-high-contrast@1.2.6 streamline-emojis@1.2.4 ph@1.2.2 lucide@1.2.137 tabler@1.2.41 mdi@1.2.3
            game-icons@1.2.4)
        for package in @lobehub/fluent-emoji-3d@1.1.0 @lobehub/fluent-emoji-flat@1.1.0 emoji-datasource-twitter@16.0.0 \
            @expo-google-fonts/noto-emoji@0.4.7 "${iconify[@]/#/@iconify-json/}"; do
            archive=$(npm pack --silent "$package")
            mkdir -p "${archive%.tgz}"
            tar -xzf "$archive" -C "${archive%.tgz}"
        done
    )
    $PYTHON -m referent.mini.artwork "$WORK/downloads" "$WORK/artwork.npz"
fi
[ -f "$SPLIT" ] || $PYTHON -m referent.mini.cards "$DATA/cards" "$SPLIT"

export HF_HUB_OFFLINE=1
materials=(--artwork "$WORK/artwork.npz" --cards "$DATA/cards" --split "$SPLIT" --backgrounds "$DATA/backgrounds")
if [ "$FROM" = nothing ]; then
    start=(--dense-steps 1500)
else
    start=(--base "$WORK/restored/mini" "$WORK/restored/mini-all" --learning-rate "${LEARNING_RATE:-6e-4}" --seed "${SEED:-2}")
    for name in mini mini-all; do
        [ -d "$WORK/restored/$name" ] || $PYTHON -m export.restore "$name" --from "$FROM" --out "$WORK/restored/$name"
    done
fi
[ -d "$WORK/base/referents" ] || $PYTHON -m referent.mini.pretrain "${materials[@]}" "${start[@]}" \
    --out "$WORK/base" --steps "${STEPS:-3800}" --eval-steps 1900 --save-steps 250

for set in cards scenes unseen_style several several_cards; do
    [ -f "$WORK/$set/test.jsonl" ] || $REFERENT data scenes --artwork "$WORK/artwork.npz" --cards "$DATA/cards" \
        --split-file "$SPLIT" --split test --set "$set" --count 400 --out "$WORK/$set"
done

judge() { # CHECKPOINT NAME SET...: figures of the test sets, which go into the checkpoint's spec
    local checkpoint=$1 name=$2
    shift 2
    for set in "$@"; do
        $REFERENT evaluate jsonl --annotations "$WORK/$set/test.jsonl" --images "$WORK/$set/images" \
            --checkpoint "$checkpoint" --out "$WORK/reports/$name" --name "$set" --record "$set"
    done
    $PYTHON -m export "$checkpoint" --name "$name" --to model_repository --weights fp16
}
judge "$WORK/base/head" mini cards scenes unseen_style
judge "$WORK/base/referents" mini-all cards scenes unseen_style several several_cards
[ -d "$WORK/text/checkpoint" ] || $PYTHON -m referent.mini.text "${materials[@]}" --base "$WORK/base/head" \
    --out "$WORK/text" --steps "${TEXT_STEPS:-2400}" --batch 16 --eval-steps 1200 --validation-scenes 12
judge "$WORK/text/checkpoint" mini-text cards scenes unseen_style
