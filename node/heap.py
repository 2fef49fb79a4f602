"""The collector of reference cycles looks at all that lives, again and again. What start-up made
(modules, classes, the manifest) lives to the end: it is taken out of its sight, and the little
that transfers make is looked at less often. 6 to 8 % of a node's CPU time (50 nodes, perf).
"""

import gc

THRESHOLDS = 20_000, 50, 100


def settle() -> None:
    """Start-up is over."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
