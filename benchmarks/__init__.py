"""What passfs costs, beside the bare directory and beside other FUSE file systems.

Run as `python -m benchmarks`; docs/performance.md says how, and how to read what comes out. It is
no test: nothing here passes or fails, and a figure belongs to the machine that it was taken on.

From the top down; a module imports only those below itself:

    __main__.py   the command: what to measure, and where the results go
    wanted.py     what the command's options ask for
    isolation.py  runs measure.py where nothing can be left behind
    measure.py    the process that measures: rounds, subjects, lines, load
    volumes.py    what a volume costs: memory, Mount's latency, processor time of a request
    rounds.py     one subject through every line, in a process that may hang
    subjects.py   what is compared, and how each is mounted and unmounted
    work.py       lines: real programs over a tree of files
    data.py       lines: contents of one large file
    metadata.py   lines: names and attributes of many small files
    lines.py      what a line is, and the place that it works in
    machine.py    what the figures belong to, and the competing load
    processes.py  processor time and memory of other processes
    markdown.py   the results as a page
    picture.py    the results as a drawing
    table.py      the results as text in rows
    report.py     the results: samples, medians, ratios
    plan.py       what is to be measured
"""
