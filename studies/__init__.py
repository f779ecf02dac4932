"""Experiments on the toybox: many small trainings, measured alike. `bash scripts/ablation.sh [STUDY]`, see run.py.

variants.py: what is compared; cells.py: one training, drawn and measured; tables.py: means, intervals, verdicts;
run.py: all of it, sharded and resumable. Results: studies/<study>/cells/*.json, table.json, table.md.
"""
