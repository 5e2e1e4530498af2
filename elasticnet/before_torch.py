"""Import this before torch: it sets what torch reads only once, when it is imported."""

import os

# OpenMP's threads spin while they wait for each other. libgomp's default is to spin so long that
# other work on the same cores slows a training step down many times. 1,000 turns cost nothing on an
# idle machine, where threads that sleep at once (PASSIVE) cost a fifth of the step. libgomp follows
# the count where both are set; other OpenMP libraries know the policy alone.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
