"""The metrics for Prometheus, and the plugin's health, at an address of the administrator's choice.

The modules, from the top down:

    exposition  the text that Prometheus scrapes
    metrics     the answers at the address
    pages       the pages at the address
    snapshot    the facts about all volumes at one moment

The library prometheus-client takes longer to load than the plugin has time at its start. Only
exposition imports it, and the plugin imports exposition only if the setting names an address.
"""
