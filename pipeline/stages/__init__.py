"""One module a DVC stage: read, call, write."""

import os

# Read by GNU OpenMP when torch is loaded, so set before any stage imports it: a thread waiting for another spins for
# microseconds, then sleeps. By default it spins for milliseconds, which on a machine shared with other programs
# makes training some thirty times slower than its share of the cores.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
