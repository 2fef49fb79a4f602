"""How much a swarm does at once, and how long it waits."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """How much at once and how long, each with its reason."""

    window: int = 64
    """so many of the chunks that are not here are pulled: 1 GiB at 16 MiB; whole-file rarest first
    makes a streaming reader wait 1.7 x"""
    asks_total: int = 14
    """requests outstanding in all (the probe's best at 8 nodes)"""
    asks_per_peer: int = 2
    """one on the wire and one behind it, so that the link never idles between two"""
    origin_fetches: int = 2
    """leases at once: fewer idle the origin's link, more spread it thin"""
    origin_tries: int = 3
    """before a lease goes back to the tracker, whose other nodes may fare better"""
    rehashes: int = 4
    """chunks hashed at once after a restart"""
    ahead: int = 256
    """and so many wait at peers: they come as they come there"""
    ahead_first: int = 24
    """while nothing is here, and four more with each chunk: in the first second 50 nodes have
    better things to do than to ask for what comes in the fourth"""
    ahead_batch: int = 16
    """so many come before more are asked"""
    ahead_batch_first: int = 4
    """and so many while little is here"""
    have_batch: int = 4
    """peers hear of so many chunks together: each alone would wake 50 nodes 50 times"""
    have_delay_s: float = 1.0
    """and after so long at the latest"""
    have_peers: int = 8
    """at a time, those first that have heard nothing for longest: so each node soon hears from
    somebody, whatever the number of nodes"""
    busy_cap_s: float = 2.0
    failure_first_s: float = 0.5
    failure_cap_s: float = 8.0
    strikes: int = 2
    quarantine_s: float = 60.0
    pins_again_s: float = 1.0
    ask_timeout_s: float = 30.0
    """a worker notices a stall in 2 s; this is the net under it"""
    late_factor: float = 4.0
    """a request that takes so many times as long as others do is asked of another holder"""
    late_least_s: float = 0.5
    """but not sooner: what is cancelled may have come for the most part"""
    late_ending: float = 0.4
    """and after so much of that when nothing else is to come"""
    space_retry_s: float = 2.0
    lease_grace_s: float = 3.0
    """after the tracker's loss its leases run out; then rendezvous hashing decides"""
    rehash_again_s: float = 1.0
    confirm_tries: int = 3
    """times that the tracker is asked for pins that senders alone vouch for, a second apart"""
