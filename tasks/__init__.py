"""The work: one module a stage, each a function from files to files that runs with no server."""

import os

# Threads that wait for work sleep instead of spinning: on cores that are shared with anything else,
# torch is three times faster so. Read once, when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
