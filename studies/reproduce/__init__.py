"""The paper's tables on photos and a base of one's own: `bash scripts/reproduce.sh`.

settings      what can be asked for
study         what a method and a table are
methods       the methods and the paper's tables, as data: another method is one row
questions     what else is asked of the toybox; paper: the paper's figures
subjects      DreamBooth's layout, class words, masks; the toybox's own subjects
plan          which cells the tables need
cost          what a cell costs, counted; forecast: hours and disk of a plan
cell          one cell: train, draw, measure, in a process of its own
measures      the metrics of a picture; counterfeits: which of them to believe
facts         what its concept has learned, and what it does to the base
store         rows, claims, what is kept; lending: a concept for cells that draw otherwise
attempts      one try of a cell
engine_local  processes of this machine, and of all that share a disk
engine_ray    a cluster, by Ray
tables        rows -> the paper's tables with its own figures beside ours
estimates     means, intervals, paired differences, verdicts; costs: what a method costs
figure        text against identity; grid, worst: what the pictures look like
spread        W2 of each method's pictures against the base's; shown: tables into pages
verify        do tables, rows and pictures agree, and does a cell come out the same
run           all of it
"""
