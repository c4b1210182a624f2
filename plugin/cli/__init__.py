"""The commands of `passfs` as typer declares them: names, arguments, help texts, exit status.

Each function imports what it needs, so that no command waits for the modules of another one.

The modules, from the top down:

    measuring    the commands that measure volumes
    volumes      the commands about volumes: they ask the running plugin
    machine      the commands about the machine
    mounting     mount and unmount without Docker
    installing   run, install and upgrade the plugin
    display      the steps of an installation on a terminal
    app          the program itself, and what its commands share
    completion   the completion of arguments in a shell
"""
