"""Installs the managed plugin into a Docker engine, and upgrades the service on the host.

The modules, from the top down:

    upgrade          the steps of an upgrade of the service on the host
    service          the service's unit, systemctl(1), and the plugin's socket
    installer        the steps of an install and of an uninstall
    image            build and export of the plugin's root file system
    engine           the requests to the Docker engine
    kept_files       the files that an install leaves for later ones
    engine_facts     facts about an engine: rootless, remapped users, platform
    directories      the directories of the plugin, and those for temporary files
    plugin_settings  the settings of an installed plugin, and the new ones
    source_tree      the files that a plugin is built from
    installation     the arguments and results of the commands, the display, the error
"""
