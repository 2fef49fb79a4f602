"""The architecture as a test: who may import what, what is pure, how long a piece may be."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("p2p", "tracker", "node", "simulations")

EDGE_OF_P2P = {"connection", "outbox", "poller", "web"}
PURE_TRACKER = {"allowances", "assignment", "budget", "directory", "leases", "member", "pace",
                "model", "sealing", "view", "wanting"}  # fmt: skip
PURE_NODE = {"nics", "pairs", "routing"}
ALLOWED_IN_PURE = {
    "bisect", "collections", "contextlib", "dataclasses", "email", "enum", "functools", "hashlib",
    "heapq", "hmac", "ipaddress", "itertools", "math", "msgpack", "random", "re", "struct",
    "typing", "xxhash", "p2p", "tracker",
}  # fmt: skip

# file: (lines it may have, why)
LONGER_FILES = {
    "node/chunks.py": (430, "marks, digests and bytes of a block belong together"),
    "node/fetch.py": (490, "one request's life: slot, try, hedge, resume"),
    "p2p/swarm.py": (830, "one state machine: its transitions are read side by side"),
    "p2p/messages.py": (510, "every message of the wire, in one place"),
    "p2p/events.py": (580, "every event and command of the swarm, in one place"),
    "tracker/model.py": (615, "one state machine, like the swarm"),
    "simulations/__main__.py": (450, "every bench's options: an interface, not decisions"),
    "node/daemon.py": (520, "the root: builds and ties together what others define"),
}
MAX_FILE, MAX_FUNCTION, MAX_LINE = 400, 70, 100

FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(path: Path) -> set[str]:
    """Dotted names of all modules that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name(path)}: relative import"
            found.add(node.module or "")
    return found


def pure_files() -> list[Path]:
    pure = [path for path in (ROOT / "p2p").glob("*.py") if path.stem not in EDGE_OF_P2P]
    pure += [ROOT / "node" / f"{stem}.py" for stem in sorted(PURE_NODE)]
    return pure + [ROOT / "tracker" / f"{stem}.py" for stem in sorted(PURE_TRACKER)]


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("p2p", {"tracker", "node", "simulations", "tests"}),
        ("tracker", {"node", "simulations", "tests"}),
        ("node", {"tracker", "simulations", "tests"}),
        ("simulations", {"tests"}),
    ],
)
def test_no_package_imports_upward(package, forbidden):
    for path in (ROOT / package).rglob("*.py"):
        heads = {module.split(".")[0] for module in imports(path)}
        assert not heads & forbidden, name(path)


@pytest.mark.parametrize("path", pure_files(), ids=name)
def test_a_pure_module_has_no_clock_no_chance_and_no_io(path):
    heads = {module.split(".")[0] for module in imports(path)}
    assert heads <= ALLOWED_IN_PURE, sorted(heads - ALLOWED_IN_PURE)
    edges = {f"p2p.{stem}" for stem in EDGE_OF_P2P} | {"tracker.server", "tracker.cli"}
    assert not imports(path) & edges
    for node in ast.walk(ast.parse(path.read_text())):
        assert not isinstance(node, ast.AsyncFunctionDef | ast.Await), f"line {node.lineno}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("open", "print"), f"line {node.lineno}"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert node.value.id not in ("time", "random"), f"line {node.lineno}: {node.attr}"
        if isinstance(node, ast.ImportFrom) and node.module == "random":
            assert {alias.name for alias in node.names} == {"Random"}, f"line {node.lineno}"
        if isinstance(node, ast.For | ast.comprehension):
            unordered = isinstance(node.iter, ast.Set | ast.SetComp) or (
                isinstance(node.iter, ast.Call)
                and isinstance(node.iter.func, ast.Name)
                and node.iter.func.id in ("set", "frozenset")
            )
            assert not unordered, f"line {node.iter.lineno}: the order of a set is chance"


def test_only_the_cluster_knows_docker():
    users = {name(path) for path in FILES if "docker" in {i.split(".")[0] for i in imports(path)}}
    assert {user.rpartition("/")[0] for user in users} == {"simulations/cluster"}


def calls(path: Path) -> list[tuple[str, int]]:
    """`a.b.c` of every call in a file, with its line."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute | ast.Name):
            found.append((ast.unparse(node), node.lineno))
    return found


@pytest.mark.parametrize(
    ("word", "allowed"),
    [
        ("os.environ", {"node/config.py", "tracker/config.py", "simulations/netns.py",
                        "simulations/cluster/engine.py"}),
        ("print", {"simulations/bench/picker.py", "simulations/cluster/run.py"}),
        # the copy of a file to another filesystem must not hold up the control process
        # and readers wait in threads
        ("trio.to_thread.run_sync", {"node/daemon.py", "node/delivery.py", "node/credentials.py",
                                     "node/reader/aio.py", "node/mount/__main__.py",
                                     "node/mount/keeper.py", "simulations/bench/bare_mount.py"}),
        # a reader lives in programs that know nothing of trio
        ("threading.Thread", {"node/reader/session.py", "simulations/memory.py"}),
        ("WorkerPool", {"node/daemon.py", "node/adopt.py", "node/download.py", "node/links.py",
                        "node/sealing.py", "node/view.py", "simulations/bench/workers.py"}),
        ("Swarm", {"node/daemon.py", "node/download.py", "simulations/bench/scale.py"}),
    ],
)  # fmt: skip
def test_a_word_stays_where_it_belongs(word, allowed):
    users = {name(path) for path in FILES if any(call == word for call, _ in calls(path))}
    assert users <= allowed


@pytest.mark.parametrize("path", FILES, ids=name)
def test_files_functions_and_lines_stay_short(path):
    text = path.read_text()
    lines = text.splitlines()
    limit, _reason = LONGER_FILES.get(name(path), (MAX_FILE, ""))
    assert len(lines) <= limit
    for number, line in enumerate(lines, 1):
        assert len(line) <= MAX_LINE, f"line {number}"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            # a click command's decorators are its interface, not its body
            assert length <= MAX_FUNCTION, f"{node.name} has {length} lines"


@pytest.mark.parametrize("command", ["node", "tracker"])
def test_help_imports_neither_trio_nor_httpx(command):
    subcommand = {"node": "join", "tracker": "serve"}[command]
    code = (
        "import sys\n"
        f"from {command}.cli import main\n"
        f"try: main(['{subcommand}', '--help'])\n"
        "except SystemExit as end: assert not end.code\n"
        "assert not {'trio', 'httpx'} & set(sys.modules), 'imported'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout
