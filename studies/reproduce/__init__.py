"""The paper's tables on photos and a base of one's own: `bash scripts/reproduce.sh`.

settings      what can be asked for
methods       the methods and the tables, as data: another method is one row
subjects      DreamBooth's layout, class words, masks; the toybox's own subjects
plan          which cells the tables need
cost          what a cell costs, counted; forecast: hours and disk of a plan
cell          one cell: train, draw, measure, in a process of its own
measures      the metrics of a picture; counterfeits: which of them to believe
store         rows, claims, what is kept
attempts      one try of a cell
engine_local  processes of this machine, and of all that share a disk
engine_ray    a cluster, by Ray
tables        rows -> the paper's tables with its own figures beside ours
verify        do tables, rows and pictures agree, and does a cell come out the same
run           all of it
"""
