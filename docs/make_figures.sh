#!/bin/sh
# Makes every figure of the documentation anew, and prints every table: sh docs/make_figures.sh, from the root.
set -e
PATH="$PWD/.venv/bin:$PATH"
for name in quickstart comal oracle_calls language language_reuse; do
    nlhf compare --config "configs/compare/$name.yaml" --output "runs/figures/$name" --overwrite
    cp "runs/figures/$name/comparison.png" "docs/figures/$name.png"
done
nlhf compare --config configs/compare/language_epochs.yaml --output runs/figures/language_epochs --overwrite
nlhf compare --config configs/compare/language_reuse.yaml --budget.queries 1228800 \
    --output runs/figures/language_twice --overwrite
nlhf compare --config docs/figures/optimistic.yaml --overwrite
nlhf solve --votes configs/data/debian_leader_2010.csv --bootstrap 1000 --figure docs/figures/votes_debian.png
nlhf solve --votes configs/data/condorcet_1785.csv --beta 0 --bootstrap 1000 --figure docs/figures/votes_condorcet.png
python docs/figures/simplex.py
python docs/figures/adaptive_step.py
python docs/figures/language_floor.py
python docs/figures/curves.py
python docs/figures/diagnostics.py
python docs/figures/ask.py
python docs/figures/cyclic_groups.py
python docs/figures/people.py
python docs/figures/certify_coverage.py --output docs/figures/certify.png
# An hour of a processor: what is there is kept.
python docs/ten_million/run.py
cp runs/ten_million/ten_million.png docs/figures/ten_million.png
