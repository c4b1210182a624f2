"""Installs the managed plugin into a Docker engine: build, settings, upgrade, removal.

The modules, from the top down:

    installer        the steps of an install and of an uninstall
    image            build and export of the plugin's root file system
    engine           the requests to the Docker engine
    kept_files       the files that an install leaves for later ones
    engine_facts     facts about an engine: rootless, remapped users, platform
    directories      the directories of the plugin, and those for temporary files
    plugin_settings  the settings of an installed plugin, and the new ones
    source_tree      the files that a plugin is built from
    installation     the arguments of the command, the display, and the error
"""
