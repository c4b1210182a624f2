"""The costs of passfs, compared with the bare directory and with other FUSE file systems.

Run it as `python -m benchmarks`. docs/performance.md explains the options and the results. The
benchmarks are no test: no figure passes or fails, and each is valid only for its machine. A line
that cannot run fails.

A subject is the bare directory or a file system over it. A line is one workload, and a row of the
results. From the top down; a module imports only those below itself:

    __main__.py   the command: options, and files of results
    abilities.py  tries what programs rely on, on passfs and on other file systems
    builds.py     compares requests of this checkout with another one
    arguments.py  subjects from the command's options
    isolation.py  runs measure.py in namespaces of its own
    measure.py    the process that measures: rounds, subjects, lines, load
    volumes.py    costs of a volume: memory, Mount's latency, processor time of a request
    rounds.py     runs every line for one subject, in a child process that may hang
    subjects.py   mounts and unmounts the subjects
    work.py       lines: real programs over a tree of files
    data.py       lines: contents of one large file
    metadata.py   lines: names and attributes of many small files
    lines.py      a line, and the directories in which it runs
    machine.py    facts about the machine, and the competing load
    processes.py  processor time and memory of other processes
    requests.py   counts the requests of the kernel to a mount
    markdown.py   the results as a page
    picture.py    the results as a drawing
    verdict.py    the results in plain words
    table.py      the results as text in rows
    report.py     the results: samples, medians, ratios
    plan.py       the parameters of a run
"""
