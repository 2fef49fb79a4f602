"""The generated parts of p2p/PROTOCOL.md: `python -m simulations protocol > p2p/PROTOCOL.md`.

The document is written by the code that it describes, so it cannot go stale; a test compares them.
"""

import inspect
import textwrap
import typing
from collections.abc import Iterator
from dataclasses import MISSING, fields
from typing import Any

from node import statemap
from p2p import dataframe, framing, handshake, messages
from p2p.dataframe import Flag, Header, Kind

INTRODUCTION = """\
# The protocol, version 1

For someone who writes another client. Written by `python -m simulations protocol`; every dump is
the real encoding of an example.

A **chunk** (16 MiB by default) is the unit of ownership and of bookkeeping, a **block** (1 MiB)
the part of it that has a digest of its own. (In BitTorrent's words a chunk is a *piece*; its
*blocks* of 16 KiB, which some clients call chunks, do not exist here.) A block's digest is
xxh3-128 of its bytes, a chunk's **pin** is xxh3-128 of its blocks' digests, joined. A pin is
computed from origin bytes only, by the node that read them; everyone forwards it unchanged and
keeps the first, and the tracker's stands.

All connections are TCP and start with the handshake below. A session with a tracker (role `node`)
and the one control session of a pair of peers (role `control`, dialled by the smaller node id) go
on in msgpack frames. A data connection (role `data`) carries binary frames, one way: requests up,
data down. A session with a tracker starts with `join`; a control session with `bitfield` from
both sides.

A chunk's index counts through all files of the manifest, which are sorted by path; a chunk never
spans files. The manifest's canonical msgpack is a map with the keys block_bytes, chunk_bytes,
files (path, size, ETag of each), format, model, origin, in this order; its SHA-256 is the
manifest id.
"""


def _bound(hint: Any) -> str:
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is not typing.Annotated:
        return str(hint.__name__)
    base, limit = arguments[:2]
    if typing.get_origin(base) is list:
        return f"list of at most {limit:,}; each: {_bound(typing.get_args(base)[0])}"
    if base in (int, float):
        return f"{base.__name__}, 0 to {limit:,}"
    return f"{base.__name__}, at most {limit:,}"


def _example(name: str, hint: Any) -> Any:
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is not typing.Annotated:
        return True
    base, limit = arguments[:2]
    if typing.get_origin(base) is list:
        return [_example(name, typing.get_args(base)[0])]
    if base is str:
        return "control" if name == "role" else "127.0.0.1:7" if "address" in name else "x"
    if base is bytes:
        return b"\xab" * (limit if limit <= 32 else 16 if name == "pins" else 2)
    return 1 if base is int else 1.5


def _dump(data: bytes) -> str:
    rows = [data[at : at + 32].hex(" ") for at in range(0, len(data), 32)]
    return "```\n" + "\n".join(rows) + "\n```\n"


def _doc(thing: object) -> str:
    return textwrap.dedent(inspect.getdoc(thing) or "")


def _sections() -> Iterator[str]:
    yield INTRODUCTION
    yield "## Handshake\n\n```\n" + _doc(handshake).strip() + "\n```\n"
    yield f"## Frames\n\n{_doc(framing)}\n\n{_doc(messages).split('The annotations')[0]}"
    yield (
        f"Before the handshake is done a frame has at most {framing.MAX_HANDSHAKE_FRAME:,} bytes, "
        f"then {framing.MAX_FRAME:,}. A bad frame ends the connection.\n"
    )
    yield "## Messages\n"
    for kind in messages.TYPES.values():
        hints = typing.get_type_hints(kind, include_extras=True)
        yield f"### {kind.TYPE}\n\n{_doc(kind)}\n"
        if fields(kind):
            rows = [
                f"| {field.name} | {_bound(hints[field.name])} | "
                f"{'required' if field.default is MISSING else 'optional'} |"
                for field in fields(kind)
            ]
            yield "| field | type and bound | |\n|---|---|---|\n" + "\n".join(rows) + "\n"
        values = {field.name: _example(field.name, hints[field.name]) for field in fields(kind)}
        yield _dump(framing.pack(kind(**values)))
    yield "## Data frames\n\n```\n" + _doc(dataframe).strip() + "\n```\n"
    for header in (
        Header(Kind.REQUEST, 7, 3, 0, 1 << 24),
        Header(Kind.CANCEL, 7, 3),
        Header(Kind.DATA, 7, 3, 0, 1 << 20, Flag.DIGESTS, 256),
        Header(Kind.BUSY, 7, 3, status=250),
        Header(Kind.NOT_HAVE, 7, 3),
        Header(Kind.END, 7, 3),
    ):
        yield f"{header.kind.name} (header)\n\n{_dump(header.encode())}"
    yield "## The state map\n\n```\n" + _doc(statemap).strip() + "\n```\n"


def document() -> str:
    """The whole of p2p/PROTOCOL.md."""
    return "\n".join(section.rstrip("\n") + "\n" for section in _sections())
