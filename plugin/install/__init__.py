"""Puts the managed plugin into a Docker engine: build, install, settings, upgrade, removal.

The modules, from the top down:

    engine         the requests to the Docker engine
    kept_settings  the settings that an install keeps for the next one
    daemon         facts about an engine: rootless, remapped users, platform
    installation   the parts of a managed plugin, and its settings
"""
