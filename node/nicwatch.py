"""Watches this host's NICs while the node works: rates for people, and the routing's mistakes."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

from node import routing
from p2p.rates import Rate

log = logging.getLogger(__name__)

MEASURE_S = 0.5
CHECK_S = 3.0  # into a load: counters lag a fraction of a second behind, rates settle in one

Totals = Callable[[], dict[str, list[int]]]


class NicWatch:
    """Rates by source address, and one warning if routing bypasses a NIC.

    Args:
      source_ips: none: there is nothing to watch.
      totals: payload bytes in and out by source address so far.
    """

    def __init__(self, source_ips: tuple[str, ...], totals: Totals) -> None:
        self._source_ips = source_ips
        self._totals = totals
        self._rates = {ip: (Rate(), Rate()) for ip in source_ips}
        self._shown: dict[str, tuple[float, float]] = {}
        self.warned = False

    def figures(self) -> list[dict[str, Any]]:
        """Of each source address: bytes in and out so far, and rates in bytes a second."""
        totals, found = self._totals(), []
        for ip in self._source_ips:
            received, sent = totals.get(ip, (0, 0))
            rates = self._shown.get(ip, (0.0, 0.0))
            found.append(
                {
                    "source_ip": ip,
                    "in_bytes": received,
                    "out_bytes": sent,
                    "in_bytes_s": round(rates[0]),
                    "out_bytes_s": round(rates[1]),
                }
            )
        return found

    async def run(self) -> None:
        """Measure until cancelled."""
        if not self._source_ips:
            return
        before, counters, since = self._totals(), _counters(), trio.current_time()
        while True:
            await trio.sleep(MEASURE_S)
            now, totals = trio.current_time(), self._totals()
            for ip, (received, sent) in self._rates.items():
                count = totals.get(ip, (0, 0))
                self._shown[ip] = received.update(count[0], now), sent.update(count[1], now)
            if len(self._source_ips) > 1 and not self.warned and now >= since + CHECK_S:
                after = _counters()
                await self._check(before, totals, counters, after)
                before, counters, since = totals, after, now

    async def _check(
        self,
        before: dict[str, list[int]],
        totals: dict[str, list[int]],
        counters: dict[str, routing.Bytes],
        after: dict[str, routing.Bytes],
    ) -> None:
        moved = {ip: _less(after, before.get(ip, (0, 0))) for ip, after in totals.items()}
        if all(max(one) < routing.LEAST_BYTES for one in moved.values()):
            return
        try:
            nics = routing.find_nics(
                self._source_ips, await _ip("addr"), await _ip("route") + await _ip("-6", "route")
            )
            carried = {name: _less(after[name], counters.get(name, (0, 0))) for name in after}
            found = routing.bypassed(nics, moved, carried)
            if found:
                self.warned = True
                tables = [int(rule["table"]) for rule in await _ip("rule") if _is_number(rule)]
                lines = routing.remedy(nics, [one.interface for one in found], tables)
                log.warning("%s", routing.warning(found, lines))
        except (OSError, ValueError, KeyError) as error:
            log.debug("routing not checked error=%s", error)


def _is_number(rule: dict[str, Any]) -> bool:
    return str(rule.get("table", "")).isdecimal()


def _less(after: Any, before: Any) -> routing.Bytes:
    return after[0] - before[0], after[1] - before[1]


def _counters() -> dict[str, routing.Bytes]:
    """Of this network namespace; /sys shows those of the one that mounted it."""
    return routing.parse_counters(Path("/proc/net/dev").read_text())


async def _ip(*words: str) -> list[dict[str, Any]]:
    """What `ip -j` says; nothing where there is no iproute2.

    Raises:
      OSError, ValueError: it does not work here.
    """
    program = shutil.which("ip", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if program is None:
        return []
    done = await trio.run_process([program, "-j", *words], capture_stdout=True, check=False)
    found: list[dict[str, Any]] = json.loads(done.stdout or b"[]")
    return found
