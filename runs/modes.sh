#!/usr/bin/env bash
# Text, frozen and LoRA on mini's base: the same data, budget and fresh start, judged by one evaluator.
#
#   DATA=folder WORK=folder runs/modes.sh    # the folders of runs/mini.sh, which makes base, artwork and test sets
#
# STEPS=400 BATCH=16 change the budget. A killed run can be continued; the reports have mean IoU, acc@0.5 and latency.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${DATA:?folder with cards/ and backgrounds/}" "${WORK:?folder of runs/mini.sh}"
REFERENT=.venv/bin/referent
export HF_HUB_OFFLINE=1

scenes=($REFERENT data scenes --artwork "$WORK/artwork.npz" --cards "$DATA/cards"
    --split-file runs/mini/cards_split.csv --out "$WORK/data")
[ -f "$WORK/data/train.jsonl" ] || "${scenes[@]}" --split train --count 8000 --backgrounds "$DATA/backgrounds"
[ -f "$WORK/data/val.jsonl" ] || "${scenes[@]}" --split val --set scenes --set cards --count 150

# rows of 4: an answer in words takes some thirty tokens of an expression's row
budget=(--steps "${STEPS:-400}" --eval-steps 200 --batch "${BATCH:-16}" --learning-rate 1e-3 --warmup 30 --bf16
    --row-expressions 4 --val-limit 300)
for mode in frozen lora text; do
    fresh=(--fresh-head)
    [ "$mode" = text ] && fresh=()
    [ -f "$WORK/modes/$mode/result.json" ] || $REFERENT train "$mode" --base "$WORK/base/head" \
        --data "$WORK/data" --images "$WORK/data/images" --out "$WORK/modes/$mode" "${budget[@]}" "${fresh[@]}"
done
for set in cards scenes; do
    for mode in text frozen lora; do
        # one image a pass, so that the latency is an image's
        $REFERENT evaluate jsonl --annotations "$WORK/$set/test.jsonl" --images "$WORK/$set/images" --batch 1 --limit 1000 \
            --checkpoint "$WORK/modes/$mode/best" --out "$WORK/modes/reports/$set" --name "$mode"
    done
    $REFERENT compare "$WORK/modes/reports/$set"/{text,frozen,lora}-* --out "$WORK/modes/reports"
done
