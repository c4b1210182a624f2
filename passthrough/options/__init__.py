"""The options of a volume: those that are requested, and those that are in force.

The modules, from the top down:

    cache_policy  the timeouts and open flags that follow from the cache policy
    effective     Effective: the options in force, with every conflict decided
    timeouts      the timeouts that are given, and those of the cache policy
    parsing       parses options from text into Requested
    owner         what the option owner implies, and what it excludes
    sessions      the kinds of session, and the options that each lacks
    table         Requested, and the table of options
    values        parses the values of options, and formats them
    vocabulary    aliases of options, and names that other programs use
    choices       the words that options accept
"""
