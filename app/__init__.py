"""The page in the browser: teach, draw, compare, look inside. docs/app.md tells of it.

It draws nothing and trains nothing by itself. Each action is a job: a command line of the root
scripts, run as a process and shown as it is.

    jobs.py        the queue: one job at a time, shared by all browsers
    kept.py        the queue on disk, for the next start
    workplace.py   the only folder that is written: photos, masks, results under outputs/
    commands.py    what a form says -> command lines
    looks.py       what the page shows of jobs and concepts
    teach.py draw.py compare.py    the tabs
    page.py        the tabs together
    serve.py       `bash scripts/app.sh`; space.py: the same as a Space
"""
