"""GETs of random ranges, one after the other on one connection: what a reader would do without us.

    python -m simulations.getter HOST PORT PATH SIZE LENGTH COUNT SEED

Prints the seconds of each as a JSON list.
"""

import json
import socket
import sys
import time
from http.client import HTTPConnection
from random import Random


def main() -> None:
    """Read, and say how long it took."""
    host, port, path, *numbers = sys.argv[1:]
    size, length, count, seed = map(int, numbers)
    rng, took = Random(seed), []
    connection = HTTPConnection(host, int(port))
    connection.connect()
    connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for number in range(count + 1):
        start = rng.randrange(size - length)
        begin = time.perf_counter()
        connection.request("GET", path, headers={"Range": f"bytes={start}-{start + length - 1}"})
        body = connection.getresponse().read()
        if number:  # the first one opens the congestion window
            took.append(time.perf_counter() - begin)
        if len(body) != length:
            raise SystemExit(f"{len(body)} bytes came instead of {length}")
    json.dump(took, sys.stdout)


if __name__ == "__main__":
    main()
