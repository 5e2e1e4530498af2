"""Import this before torch: it sets what torch reads only once, when it is imported."""

import os

# PASSIVE: OpenMP's threads sleep while they wait for work, so that processes share the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
