"""Print what the image installs, one requirement a line: what pyproject.toml asks for, with extras.

    python deploy/wanted.py pyproject.toml

An extra that the project does not have is left out.
"""

import sys
import tomllib
from pathlib import Path

EXTRAS = ("oss", "s3", "fuse")


def wanted(text: str) -> list[str]:
    """Of a pyproject.toml."""
    project = tomllib.loads(text)["project"]
    extras = project["optional-dependencies"]
    return project["dependencies"] + [one for name in EXTRAS for one in extras.get(name, ())]


if __name__ == "__main__":
    sys.stdout.writelines(f"{one}\n" for one in wanted(Path(sys.argv[1]).read_text()))
