"""p2p/PROTOCOL.md is what the code says: a change of the wire changes the document too."""

from pathlib import Path

from simulations.protocol_doc import document


def test_the_protocol_document_is_up_to_date():
    path = Path(__file__).resolve().parent.parent / "p2p" / "PROTOCOL.md"
    assert path.read_text() == document(), "run: python -m simulations protocol > p2p/PROTOCOL.md"
