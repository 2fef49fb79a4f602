"""Connections that leave from a chosen local address, through the interface that holds it.

An address alone does not choose the way out: the kernel routes by destination, so that without
policy routing everything leaves through one NIC. A socket that is bound to the interface too
(SO_BINDTODEVICE, before connect) does not depend on that. But where the interface has no route to
the destination such a connection fails, and one that is bound to the address alone may work: so
the two are tried in turn until one has worked, and then that one is kept.
"""

import array
import contextlib
import fcntl
import socket
import struct
from ipaddress import ip_address

import trio

SIOCGIFCONF = 0x8912
IFREQ_BYTES = 40
MAX_ADDRESSES = 1024  # that are looked at: a host has a handful, one that runs containers hundreds


def interface_of(ip: str) -> str:
    """The interface that holds a local address; empty if none does."""
    return _interface6(ip) if ":" in ip else _interface4(ip)


def local_ip(sock: socket.socket | trio.socket.SocketType) -> str:
    """The address at our end of a connection; empty if it has none (a Unix socket)."""
    try:
        name = sock.getsockname()
    except OSError:
        return ""
    return plain_ip(str(name[0])) if isinstance(name, tuple) else ""


def plain_ip(ip: str) -> str:
    """An IPv4 address that came by an IPv6 socket, as it is written elsewhere."""
    return ip.removeprefix("::ffff:")


def _interface4(ip: str) -> str:
    space = array.array("B", bytes(MAX_ADDRESSES * IFREQ_BYTES))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        request = struct.pack("iP", len(space), space.buffer_info()[0])
        (length,) = struct.unpack_from("i", fcntl.ioctl(probe, SIOCGIFCONF, request))
    data, wanted = space.tobytes(), socket.inet_aton(ip)
    for at in range(0, length, IFREQ_BYTES):
        if data[at + 20 : at + 24] == wanted:
            label = data[at : at + 16].split(b"\0")[0].decode()
            return label.partition(":")[0]  # `eth0:1` is an old way to name a second address
    return ""


def _interface6(ip: str) -> str:
    wanted = ip_address(ip).packed.hex()
    with contextlib.suppress(OSError), open("/proc/net/if_inet6") as lines:
        for words in map(str.split, lines):
            if words[0] == wanted:
                return words[-1]
    return ""


async def make_socket(source_ip: str, interface: str) -> trio.socket.SocketType:
    """A TCP socket, bound to an interface where that is allowed, and to an address.

    Raises:
      OSError: the address is not ours, or the interface is gone.
    """
    family = socket.AF_INET6 if ":" in source_ip else socket.AF_INET
    sock = trio.socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if interface:
            with contextlib.suppress(PermissionError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
        # the port is chosen at connect, when the other end is known: it may be shared with others
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_BIND_ADDRESS_NO_PORT, 1)
        await sock.bind((source_ip, 0))
    except BaseException:
        sock.close()
        raise
    return sock


class Dialler:
    """Opens connections, and remembers from which addresses the interface can be bound too.

    Args:
      bind_device: False: never bind an interface.
    """

    def __init__(self, *, bind_device: bool = True) -> None:
        self._bind_device = bind_device
        self._kept: dict[str, bool] = {}
        self._next: dict[str, bool] = {}

    def binds_device(self, source_ip: str) -> bool:
        """The next connection from this address is bound to its interface."""
        return self._kept.get(source_ip, self._next.get(source_ip, self._bind_device))

    def _tell(self, source_ip: str, bound: bool, worked: bool) -> None:
        if worked:
            self._kept.setdefault(source_ip, bound)
        elif self._bind_device:
            self._next[source_ip] = not bound

    async def connect(
        self, host: str, port: int, source_ip: str, timeout_s: float
    ) -> trio.SocketStream:
        """A connection to the first address of a host that answers.

        Args:
          source_ip: the local address; empty: the kernel chooses.

        Raises:
          OSError, trio.TooSlowError
        """
        if not source_ip:
            with trio.fail_after(timeout_s):
                return await trio.open_tcp_stream(host, port)
        bound, worked = self.binds_device(source_ip), False
        try:
            with trio.fail_after(timeout_s):
                stream = await self._connect(host, port, source_ip, bound)
            worked = True
        finally:
            self._tell(source_ip, bound, worked)
        return stream

    async def _connect(
        self, host: str, port: int, source_ip: str, bound: bool
    ) -> trio.SocketStream:
        family = socket.AF_INET6 if ":" in source_ip else socket.AF_INET
        interface = interface_of(source_ip) if bound else ""
        failure = OSError(0, f"{host} has no address that {source_ip} could reach")
        found = await trio.socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)
        for *_, address in found:
            sock = await make_socket(source_ip, interface)
            try:
                await sock.connect(address)
                return trio.SocketStream(sock)
            except OSError as error:
                sock.close()
                failure = error
            except BaseException:
                sock.close()
                raise
        raise failure
