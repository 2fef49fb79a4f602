"""Who is there: four messages, mutual proof of the cluster token, one version.

    dials                                        listens
      Hello(role, nonce, node, manifest)   ->
                                           <-    Hello(role, nonce, node, manifest, proof)
      Proof(proof)                         ->
                                           <-    Welcome(version)

Each proof is HMAC-SHA256(token, label || of each hello: role, nonce, node id, manifest id, version
range), with a label of its own for each side, so neither proof can be played back as the
other. The token itself never travels. Without a token both sides use the empty one; then nothing
listens beyond loopback (`check_exposure` in the commands). On any failure the listening side sends
`Refuse` and closes. The listener answers a wrong proof and an unknown role alike quickly: nothing
about the swarm is told before the proof holds.
"""

import hashlib
import hmac

from p2p.errors import Refused, RemoteProtocolError
from p2p.messages import (
    VERSION_HIGHEST,
    VERSION_LOWEST,
    Hello,
    Message,
    Proof,
    Refuse,
    Welcome,
)

NONCE_BYTES = 32
_DIALS = b"shoal dials\0"
_LISTENS = b"shoal listens\0"


def proof(token: bytes, label: bytes, dials: Hello, listens: Hello) -> bytes:
    """32 bytes that only a holder of `token` can make for this pair of hellos."""
    parts = [label]
    for hello in (dials, listens):
        versions = hello.low.to_bytes(2, "big") + hello.high.to_bytes(2, "big")
        for field in (hello.role.encode(), hello.nonce, hello.node, hello.manifest, versions):
            parts.append(len(field).to_bytes(2, "big") + field)
    return hmac.new(token, b"".join(parts), hashlib.sha256).digest()


def agree_version(theirs: Hello) -> int:
    """The highest version that both speak.

    Raises:
      Refused: there is none.
    """
    version = min(theirs.high, VERSION_HIGHEST)
    if version < max(theirs.low, VERSION_LOWEST) or theirs.low > theirs.high:
        raise Refused(
            "version",
            f"incompatible protocol: they speak {theirs.low} to {theirs.high}, "
            f"we speak {VERSION_LOWEST} to {VERSION_HIGHEST}; upgrade the older side",
        )
    return version


class Dialler:
    """The side that dials. `first` is to be sent at once; then feed every answer to `receive`."""

    def __init__(self, token: bytes, hello: Hello) -> None:
        self._token = token
        self.first = hello
        self.peer: Hello | None = None
        self.version: int | None = None

    def receive(self, message: Message) -> Message | None:
        """What to send next, or None. Done when `version` is set.

        Raises:
          Refused: the other side refuses us, or its proof is wrong.
          RemoteProtocolError: a message that does not belong here.
        """
        if isinstance(message, Refuse):
            raise Refused(message.code, message.text)
        if isinstance(message, Hello) and self.peer is None:
            agree_version(message)
            check_hello(message)
            expected = proof(self._token, _LISTENS, self.first, message)
            if not hmac.compare_digest(expected, message.proof):
                raise Refused("token", "wrong cluster token: use the same --token-file everywhere")
            self.peer = message
            return Proof(proof(self._token, _DIALS, self.first, message))
        if isinstance(message, Welcome) and self.peer is not None:
            if message.version != agree_version(self.peer):
                raise RemoteProtocolError(f"welcome to version {message.version} was not agreed")
            self.version = message.version
            return None
        raise RemoteProtocolError(f"{message.TYPE} does not belong into a handshake here")


class Listener:
    """The side that was dialled. `answer` builds our hello for theirs, or raises `Refused`."""

    def __init__(self, token: bytes) -> None:
        self._token = token
        self.peer: Hello | None = None
        self._ours: Hello | None = None
        self.version: int | None = None

    def receive_hello(self, message: Message, ours: Hello) -> Hello:
        """Their hello came, ours is `ours` without proof; returns the hello to send.

        Raises:
          Refused: no common version.
          RemoteProtocolError: not a hello.
        """
        if not isinstance(message, Hello) or self.peer is not None:
            raise RemoteProtocolError(f"a connection starts with hello, not {message.TYPE}")
        check_hello(message)
        agree_version(message)
        signed = Hello(
            ours.role, ours.low, ours.high, ours.node, ours.nonce, ours.manifest, ours.addresses,
            proof(self._token, _LISTENS, message, ours),
        )  # fmt: skip
        self.peer, self._ours = message, ours
        return signed

    def receive_proof(self, message: Message) -> Welcome:
        """Their proof came; returns the welcome to send, and the handshake is done.

        Raises:
          Refused: they do not know the token.
        """
        if not isinstance(message, Proof) or self.peer is None or self._ours is None:
            raise RemoteProtocolError(f"{message.TYPE} came where a proof belongs")
        expected = proof(self._token, _DIALS, self.peer, self._ours)
        if not hmac.compare_digest(expected, message.proof):
            raise Refused("token", "wrong cluster token: use the same --token-file everywhere")
        self.version = agree_version(self.peer)
        return Welcome(self.version)


def check_hello(hello: Hello) -> None:
    """Exact lengths, which the codec only bounds.

    Raises:
      RemoteProtocolError: a nonce, node id or manifest id of another length.
    """
    if (
        len(hello.nonce) != NONCE_BYTES
        or len(hello.node) != 16
        or len(hello.manifest) not in (0, 32)
    ):
        raise RemoteProtocolError("a hello has a nonce, node id or manifest id of a wrong length")
