"""Progress for people: a live line on a terminal, one line every few seconds elsewhere."""

import sys
from collections.abc import Callable
from dataclasses import dataclass

import trio

from p2p.rates import Rate
from p2p.units import format_size

LIVE_S = 0.5
LINE_S = 5.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What there is to show at one moment."""

    model: str
    total_bytes: int
    held_bytes: int
    origin_bytes: int
    peer_bytes: int
    served_bytes: int
    peers: int
    complete: bool
    waiting_for_space: bool
    suspects: int
    text: str
    nics: tuple[tuple[str, float, float], ...] = ()
    """source address, bytes a second in and out"""


def format_line(snapshot: Snapshot, origin_rate: float, peer_rate: float) -> str:
    """One line: how far, how fast from where, how long still."""
    if not snapshot.total_bytes and not snapshot.complete:
        return snapshot.text
    share = snapshot.held_bytes / snapshot.total_bytes if snapshot.total_bytes else 1.0
    rate = origin_rate + peer_rate
    left = snapshot.total_bytes - snapshot.held_bytes
    if snapshot.complete:
        state = "complete, serving"
    elif snapshot.waiting_for_space:
        state = "NO SPACE in the cache dir: waiting"
    elif rate > 0 and left:
        state = f"ETA {left / rate:.0f} s"
    else:
        state = "waiting"
    parts = [
        f"{share:6.1%} of {format_size(snapshot.total_bytes)}",
        f"origin {format_size(origin_rate)}/s",
        f"peers {format_size(peer_rate)}/s ({snapshot.peers})",
        state,
    ]
    if len(snapshot.nics) > 1:
        parts += [
            f"{ip} in {format_size(received)}/s out {format_size(sent)}/s"
            for ip, received, sent in snapshot.nics
        ]
    if snapshot.suspects:
        parts.append(f"{snapshot.suspects} chunks on disk to be hashed")
    if snapshot.text:
        parts.append(snapshot.text)
    return "  ".join(parts)


async def show_progress(snapshot: Callable[[], Snapshot], quiet: bool) -> None:
    """Show until cancelled."""
    if quiet:
        return
    live = sys.stderr.isatty()
    origin, peer = Rate(), Rate()

    def line() -> str:
        now, shown = trio.current_time(), snapshot()
        return format_line(
            shown, origin.update(shown.origin_bytes, now), peer.update(shown.peer_bytes, now)
        )

    if not live:
        while True:
            line()
            await trio.sleep(LINE_S)
            sys.stderr.write(line() + "\n")
            sys.stderr.flush()
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    with Live(console=Console(stderr=True), auto_refresh=False) as display:
        while True:
            display.update(Text(line()), refresh=True)
            await trio.sleep(LIVE_S)
