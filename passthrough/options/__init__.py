"""The options of a volume: what was requested, what is in force.

The modules, from the top down:

    effective     resolves conflicts between options: the options in force, with reasons
    cache_policy  timeouts and open flags of each cache policy
    config        Config: the table of options, and its parser
    vocabulary    aliases of options, and names that other programs use
    values        parses the values of options, and formats them
    choices       the words that options accept
"""
