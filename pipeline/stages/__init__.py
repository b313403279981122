"""One module a DVC stage: read, call, write."""

import ctypes
import os
import signal
import sys

# Read by GNU OpenMP when torch is loaded, so set before any stage imports it: a thread waiting for another spins for
# microseconds, then sleeps. By default it spins for milliseconds, which on a machine shared with other programs
# makes training some thirty times slower than its share of the cores.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# Servers started here answer on this machine alone, which a proxy does not reach. Both spellings: the lower wins.
direct = [*os.environ.get("no_proxy", "").split(","), *os.environ.get("NO_PROXY", "").split(",")]
os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(
    dict.fromkeys([*filter(None, direct), "127.0.0.1", "localhost"])
)

PARENT = os.getppid()  # of a stage, before the seconds that its imports take, in which it may lose it
if sys.argv[0] == "-m":  # a stage is being started: until it answers to them, signals end it without a traceback
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM, 0, 0, 0)  # PR_SET_PDEATHSIG: its parent's death ends it too
