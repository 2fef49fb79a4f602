"""Where nodes of a test have their mounts."""

import os
import signal
from pathlib import Path

from support.cluster import Cluster, Process, children, wait_until


def mount_of(cluster: Cluster, name: str) -> Path:
    """The folder that `--mount` of a node of this name is given."""
    return cluster.node_folder(name) / "mnt"


def start_mounted(
    cluster: Cluster, name: str, *options: str, prefix: tuple[str, ...] = ()
) -> tuple[Process, Path]:
    """A node with a mount, once it says that the mount is there."""
    folder = mount_of(cluster, name)
    log = cluster.node_folder(name) / "node.log"
    before = log.stat().st_size if log.exists() else 0
    node = cluster.start_node(name, "--mount", str(folder), *options, prefix=prefix)

    def there() -> bool:
        assert node.popen.poll() is None, node.text
        return f"the model is at {folder}" in node.text[before:]

    wait_until(there, "the mount")
    return node, folder


def mount_process(node: Process) -> int:
    """The process id of a node's mount."""
    family = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children(node.popen.pid)}
    (found,) = (pid for pid, words in family.items() if b"node.mount" in words.split(b"\0"))
    return found


def kill_alone(node: Process) -> None:
    """SIGKILL to the control process alone: its workers and its mount see it die."""
    family = children(node.popen.pid)
    os.kill(node.popen.pid, signal.SIGKILL)
    node.popen.wait()
    wait_until(lambda: not any(Path(f"/proc/{one}").exists() for one in family), "its family's end")
