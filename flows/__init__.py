"""Prefect: which stages run, where, in what order, retried and watched. No logic of the work.

Prefect calls home when it is imported in a terminal, unless it is told not to; so that comes first.
"""

from tasks.telemetry import quiet_telemetry

quiet_telemetry()
