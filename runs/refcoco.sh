#!/usr/bin/env bash
# The published recipe on RefCOCO (UNC) at LLaVA-1.5-7B: data, frozen, LoRA, figures on val and testA, export.
#
#   REFCOCO=folder IMAGES=folder BASE=folder WORK=folder runs/refcoco.sh
#
# REFCOCO holds `refs(unc).p` and instances.json, IMAGES COCO's train2014, BASE a local llava-1.5-7b-hf; a GPU with 40 GB.
# Not run here: it is the recipe of visual-grounding-api (1 sentence an object there, all of them here) with a letterbox
# and a real [LOC] token. To train its very model, add --center-crop --plain-text-loc --template vg --no-scores.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${REFCOCO:?folder with refs(unc).p and instances.json}" "${IMAGES:?folder of COCO train2014}"
: "${BASE:?llava-1.5-7b-hf}" "${WORK:?folder for data and checkpoints}"
REFERENT=.venv/bin/referent
export HF_HUB_OFFLINE=1

[ -f "$WORK/data/train.jsonl" ] || $REFERENT data prepare refer "$REFCOCO" --images "$IMAGES" --out "$WORK/data"
common=(--base "$BASE" --data "$WORK/data" --images "$IMAGES" --train-limit 20000 --val-limit 1000
    --bf16 --base-dtype bf16 --gradient-checkpointing --row-expressions 8 --workers 8)
# a frozen base has not learnt a token for [LOC], but understands it as a word
$REFERENT train frozen "${common[@]}" --plain-text-loc --out "$WORK/frozen" --epochs 3 --batch 4
$REFERENT train lora "${common[@]}" --out "$WORK/lora" --epochs 10 --batch 8
for split in val testA; do
    for mode in frozen lora; do
        $REFERENT evaluate jsonl --annotations "$WORK/data/$split.jsonl" --images "$IMAGES" \
            --checkpoint "$WORK/$mode/best" --out "$WORK/reports" --name "$mode-$split" --record "refcoco_$split"
    done
done
.venv/bin/python -m export "$WORK/lora/best" --name llava-7b --dtype fp16 --to model_repository
