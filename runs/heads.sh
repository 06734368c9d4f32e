#!/usr/bin/env bash
# The box head at [LOC], the referent head, and both on one trunk: the same base, data and budget, three seeds.
#
#   DATA=folder WORK=folder runs/heads.sh    # the folders of runs/mini.sh, which makes the base, artwork and test sets
#
# STEPS=300 SEEDS="0 1 2" change the budget, LIMIT=1000 takes so many expressions of each test set of mini.sh. Heads start
# fresh; a killed run goes on.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${DATA:?folder with cards/ and backgrounds/}" "${WORK:?folder of runs/mini.sh}"
PYTHON=.venv/bin/python
REFERENT=.venv/bin/referent
export HF_HUB_OFFLINE=1

for seed in ${SEEDS:-0 1 2}; do
    for heads in head referents both; do
        run="$WORK/heads/$heads-$seed"
        [ -d "$run/head" ] || [ -d "$run/referents" ] || $PYTHON -m referent.mini.pretrain --heads "$heads" --fresh-heads \
            --base "$WORK/base/head" --artwork "$WORK/artwork.npz" --cards "$DATA/cards" --split runs/mini/cards_split.csv \
            --backgrounds "$DATA/backgrounds" --out "$run" --steps "${STEPS:-300}" --eval-steps 100 --seed "$seed"
        for kind in head referents; do
            [ -d "$run/$kind" ] || continue
            for set in cards scenes unseen_style; do
                $REFERENT evaluate jsonl --annotations "$WORK/$set/test.jsonl" --images "$WORK/$set/images" \
                    --checkpoint "$run/$kind" --out "$WORK/heads/reports/$set" --name "$heads-$kind-$seed" ${LIMIT:+--limit "$LIMIT"}
            done
        done
    done
done
for set in cards scenes unseen_style; do
    $REFERENT compare "$WORK/heads/reports/$set"/* --out "$WORK/heads/reports"
done
