"""Studies on the toybox: many small trainings, measured alike.

`bash scripts/ablation.sh [STUDY]` runs them.

variants      what is compared, and the prompts
cells         one cell: a training, the pictures of its concept and their measures
store         where cells are kept, and who may write
instruments   the eyes: CLIP, DINO and the judges of the toybox
tables        means, intervals, differences, verdicts
paper         what the paper reports
figure, grid  a study's rows and its concepts as pictures
run           all of it, shared out among processes and resumable
"""
