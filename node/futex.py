"""Waiting on a 32-bit word in a file that several processes map: futex(2), shared.

Python has no binding of it. Without one (an unknown processor) a wait is a short sleep.
"""

import ctypes
import platform
import time

_NUMBERS = {"x86_64": 202, "aarch64": 98, "riscv64": 98, "loongarch64": 98, "ppc64le": 221,
            "s390x": 238}  # fmt: skip
_NUMBER = _NUMBERS.get(platform.machine())
_WAIT, _WAKE = 0, 1
_EVERYONE = 2**31 - 1
_BLIND_S = 0.005


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long


def wait(address: int, seen: int, timeout_s: float) -> None:
    """Sleep while the word at `address` is `seen`; other threads run meanwhile.

    Returns after a wake, a signal, the time, or for no reason: look again.
    """
    if _NUMBER is None:
        time.sleep(min(timeout_s, _BLIND_S))
        return
    limit = _Timespec(int(timeout_s), int(timeout_s % 1 * 1e9))
    _syscall(
        ctypes.c_long(_NUMBER), ctypes.c_void_p(address), ctypes.c_int(_WAIT),
        ctypes.c_uint32(seen), ctypes.byref(limit), None, ctypes.c_int(0),
    )  # fmt: skip


def wake(address: int) -> None:
    """Wake everyone who waits on the word at `address`."""
    if _NUMBER is not None:
        _syscall(
            ctypes.c_long(_NUMBER), ctypes.c_void_p(address), ctypes.c_int(_WAKE),
            ctypes.c_int(_EVERYONE), None, None, ctypes.c_int(0),
        )  # fmt: skip
