"""What the method does, measured and drawn on the toybox. What it costs is in benchmarks/.

reproduce/   many trainings, measured alike: the paper's tables and other questions, on one machine
             or a cluster
insides/     pictures of the insides of a concept: bands, reference attention, gate
quality/     how good the toybox is; what masks, compression, shortcuts, a second subject cost
results/     all data that these wrote
charts.py    how they draw a chart
"""
