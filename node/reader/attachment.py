"""The attachment of one model: made anew after a node's restart and in a forked child."""

import os
import threading
import weakref
from pathlib import Path

from node.reader.session import Session, failure
from p2p.manifest import Manifest

_ALL: "weakref.WeakSet[Attachment]" = weakref.WeakSet()


class Attachment:
    """Gives the session that stands. The revision is that of the first one, for ever.

    Args:
      path: the node's socket.
      timeout_s: as of `Session`.
      once: a session that is lost is not replaced.

    Raises:
      OSError: as `Session`.
    """

    def __init__(self, path: Path, timeout_s: float | None, once: bool = False) -> None:
        self._once = once
        self._lock = threading.Lock()
        self._closed = False
        self._path, self._timeout_s = path, timeout_s
        self._session = Session(path, b"", timeout_s)
        self._finalizer = weakref.finalize(self, Session.close, self._session)
        self.manifest: Manifest = self._session.manifest
        _ALL.add(self)

    def __repr__(self) -> str:
        return f"<Attachment {self._session!r}>"

    @property
    def session(self) -> Session:
        """The session; a lost one is replaced if a node is there again.

        Raises:
          OSError: the model is closed, or no node is there, or it has another revision.
        """
        session = self._session
        if self._once or (not session.lost and not session.map.retired):
            return session
        with self._lock:
            if self._closed:
                raise failure("the model is closed")
            if self._session is session:
                session.close()
                anew = Session(self._path, self.manifest.id, self._timeout_s)
                anew.tick, session.tick = session.tick, _nothing
                self._finalizer.detach()
                self._session = anew
                self._finalizer = weakref.finalize(self, Session.close, anew)
            return self._session

    @property
    def standing(self) -> Session:
        """The last session, whether it stands or not."""
        return self._session

    def close(self) -> None:
        """Part with the node."""
        self._closed = True
        self._finalizer()

    def forked(self) -> None:
        """This is a child process."""
        self._lock = threading.Lock()
        self._finalizer.detach()
        self._session.forked()


def _nothing() -> None:
    return None


def _forked() -> None:
    for attachment in list(_ALL):
        attachment.forked()


os.register_at_fork(after_in_child=_forked)
