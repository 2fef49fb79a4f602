"""How long to wait before another try: full jitter, doubling, with a cap.

Full jitter (a random share of the whole interval) keeps a crowd that failed together from coming
back together (Brooker, "Exponential Backoff And Jitter", 2015).
"""

from random import Random


def full_jitter(attempt: int, first_s: float, cap_s: float, rng: Random) -> float:
    """Seconds before try `attempt` (from 0): at least a tenth of the interval, so never none."""
    interval_s = min(cap_s, first_s * 2.0 ** min(attempt, 30))
    return interval_s * (0.1 + 0.9 * rng.random())
