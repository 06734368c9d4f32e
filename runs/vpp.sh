#!/usr/bin/env bash
# Visual position prompts in front of mini: none, global, global and local, one budget for all.
#
#   DATA=folder WORK=folder runs/vpp.sh
#
# DATA and WORK are as for runs/mini.sh; it uses WORK's artwork.npz, and mini as it is published. DETECTOR_STEPS and
# STEPS (of each cell) change the budget. If killed, it continues when started again. The results are in
# docs/experiments.md.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${DATA:?folder with cards/ and backgrounds/}" "${WORK:?folder with artwork.npz of runs/mini.sh}"
PYTHON=${PYTHON:-.venv/bin/python}
REFERENT="$PYTHON -m referent"
SPLIT=runs/mini/cards_split.csv
OUT=$WORK/vpp
BASE=$OUT/base
export HF_HUB_OFFLINE=1
mkdir -p "$OUT/detector"

[ -d "$BASE" ] || $PYTHON -m export.restore mini --from model_repository --out "$BASE"
materials=(--artwork "$WORK/artwork.npz" --cards "$DATA/cards")
[ -f "$OUT/detector/result.json" ] || $PYTHON -m referent.mini.prompted detector "${materials[@]}" --split "$SPLIT" \
    --backgrounds "$DATA/backgrounds" --out "$OUT/detector" --steps "${DETECTOR_STEPS:-2500}"
[ -d "$OUT/bases/both" ] ||
    $PYTHON -m referent.mini.prompted assemble --base "$BASE" --detector "$OUT/detector" --out "$OUT/bases"

scenes=($REFERENT data scenes "${materials[@]}" --split-file "$SPLIT" --workers 1)
[ -f "$OUT/data/train.jsonl" ] || "${scenes[@]}" --split train --count 2500 --mix icons=1 \
    --backgrounds "$DATA/backgrounds" --out "$OUT/data"
[ -f "$OUT/data/val.jsonl" ] || "${scenes[@]}" --split val --set scenes --count 100 --out "$OUT/data"
[ -f "$OUT/test/test.jsonl" ] || "${scenes[@]}" --split test --set scenes --count 400 --out "$OUT/test"

rate=(--learning-rate 2e-4 --vision-learning-rate 2e-4 --projector-learning-rate 2e-4 --language-learning-rate 2e-4)
budget=(--data "$OUT/data" --images "$OUT/data/images" --steps "${STEPS:-400}" --eval-steps 200 --batch 16 --warmup 20
    --l1-weight 8 --bf16 --workers 0 "${rate[@]}")
# what is new takes the published factor over the rest: a detector half its rate, the axis and its projector all of it
[ -f "$OUT/none/result.json" ] || $REFERENT train full --base "$BASE" --out "$OUT/none" "${budget[@]}"
for cell in global both both_untrained; do
    [ -f "$OUT/$cell/result.json" ] || $REFERENT train vpp --loc-head --base "$OUT/bases/$cell" --out "$OUT/$cell" \
        "${budget[@]}" --detector-learning-rate 1e-4
done
for cell in none global both both_untrained; do
    compgen -G "$OUT/reports/$cell-*" > /dev/null || $REFERENT evaluate jsonl --annotations "$OUT/test/test.jsonl" \
        --images "$OUT/test/images" --checkpoint "$OUT/$cell/best" --out "$OUT/reports" --name "$cell"
done
$REFERENT compare "$OUT/reports"/{none,global,both,both_untrained}-* --out "$OUT/reports"
