"""Reading the model of this host's node while it arrives: `open_model`, and `open_model_async` on
trio. `p2p://MODEL/path` for fsspec is in `node.reader.filesystem`."""

from node.reader.aio import AsyncFile, AsyncModel, open_model_async
from node.reader.model import FileEntry, Model, ModelFile, Progress, open_model

__all__ = [
    "AsyncFile",
    "AsyncModel",
    "FileEntry",
    "Model",
    "ModelFile",
    "Progress",
    "open_model",
    "open_model_async",
]
