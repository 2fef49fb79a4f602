"""What a reader and the node of its host say to each other on CACHE/reader.sock.

Frames as between peers: 4 bytes length (big-endian), then msgpack (see `p2p.codec`). The reader
starts with `Attach`; the node answers with `Attached` as soon as the manifest is known and the
store is open, or with `Denied`. What is here the reader sees in the state map (`node.statemap`),
and reads from the files in `directory`; it says something only when it lacks something.

A `stream` is a number that the reader chooses for each place that it reads at, once an attachment.
Ranges are bytes `start` to `end` (not included) of a file, an index into the manifest's files.
"""

from dataclasses import dataclass
from typing import Annotated

from p2p.codec import Codec, Struct
from p2p.messages import MAX_BATCH, U16, U32, U63, Blob, Hash, Text

VERSION = 1
SOCKET_NAME = "reader.sock"
MAX_STREAMS = 65_536  # of one attachment; a process may have 1,048,576 open files at most
MAX_PLAN = 4096  # ranges of one message; a plan may take several
Places = Annotated[list[U63], MAX_PLAN]


@dataclass(frozen=True, slots=True)
class ReaderMessage(Struct):
    """Base of these messages."""


# -- reader to node -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Attach(ReaderMessage):
    """First message. `manifest`: the revision that the reader has begun with; empty: any."""

    TYPE = "attach"
    version: U16
    manifest: Hash = b""


@dataclass(frozen=True, slots=True)
class Need(ReaderMessage):
    """The stream is blocked on these bytes. Replaces its former need."""

    TYPE = "need"
    stream: U32
    file: U32
    start: U63
    end: U63


@dataclass(frozen=True, slots=True)
class Satisfied(ReaderMessage):
    """The stream is blocked no more."""

    TYPE = "satisfied"
    stream: U32


@dataclass(frozen=True, slots=True)
class Window(ReaderMessage):
    """What the stream will read soon. Replaces its former window; empty: none."""

    TYPE = "window"
    stream: U32
    file: U32
    start: U63
    end: U63


@dataclass(frozen=True, slots=True)
class WillNeed(ReaderMessage):
    """A plan: these ranges will be read. Adds to the stream's plan. All lists are of one length."""

    TYPE = "will_need"
    stream: U32
    files: Places
    starts: Places
    ends: Places


@dataclass(frozen=True, slots=True)
class Served(ReaderMessage):
    """The stream has read these bytes. Sent only when the node evicts, and not for each read."""

    TYPE = "served"
    stream: U32
    file: U32
    start: U63
    end: U63


@dataclass(frozen=True, slots=True)
class Closed(ReaderMessage):
    """The stream has ended; its number may be used again."""

    TYPE = "closed"
    stream: U32


# -- node to reader -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Attached(ReaderMessage):
    """The revision and where it is. Before it come `Refused` and `Vouched` of the files so far.

    `evicts`: what is here may be dropped while the node runs. `require_seal`: a file may be read
    only when it is vouched for.
    """

    TYPE = "attached"
    manifest: Blob
    directory: Text
    evicts: bool
    require_seal: bool


@dataclass(frozen=True, slots=True)
class Vouched(ReaderMessage):
    """These files are what the store has, or nothing tells. Only with a required seal."""

    TYPE = "vouched"
    files: Annotated[list[U32], MAX_BATCH]


@dataclass(frozen=True, slots=True)
class Refused(ReaderMessage):
    """The file is not what the store has: nothing more may be read of it."""

    TYPE = "refused"
    file: U32
    text: Text


@dataclass(frozen=True, slots=True)
class Failed(ReaderMessage):
    """Nobody can give what is missing, for the reason in `text`: whoever is blocked now fails."""

    TYPE = "failed"
    text: Text


@dataclass(frozen=True, slots=True)
class Denied(ReaderMessage):
    """No attachment, and why."""

    TYPE = "denied"
    text: Text


CODEC = Codec(ReaderMessage)
