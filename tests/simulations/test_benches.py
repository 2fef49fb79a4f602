"""Each bench runs really, at a size that costs no time, and writes the figures that it promises.

How large they are decides nothing here: a loaded machine must not fail a test.
"""

import json

import pytest

from simulations.bench import fetch, hash, peer, read, store, workers

MACHINE = {"machine", "cores", "python", "kernel", "load", "command", "bench"}


@pytest.fixture
def written(tmp_path, capsys):
    """`written(measure, *arguments)`: the JSON of a bench, and what it printed."""

    def run(measure, *arguments, **options):
        path = tmp_path / "figures.json"
        measure(*arguments, json_file=path, **options)
        result = json.loads(path.read_text())
        assert set(result) >= MACHINE
        return result, capsys.readouterr().out

    return run


def positive(figures: dict[str, object], *names: str) -> None:
    """These are numbers that something real leaves behind."""
    for name in names:
        value = figures[name]
        assert isinstance(value, float), name
        assert value > 0, name


def test_fetch_compares_a_node_with_the_programs_that_are_there(written):
    result, printed = written(fetch.measure, "2MiB", 1, None)
    assert result["size_bytes"] == 2 * 1024**2
    assert {*result["programs"], *result["missing"]} == {"p2p-node", "curl", "aria2c", "s5cmd"}
    for figures in result["programs"].values():
        positive(figures, "cpu_s_per_gb", "gb_per_s", "seconds")
    assert "python -m simulations bench fetch --size 2MiB --runs 1" in printed


@pytest.mark.parametrize("count", [None, 2])
def test_peer_compares_two_nodes_with_curl_and_nginx_on_both_sides(written, count):
    result, printed = written(peer.measure, "2MiB", 1, count)
    assert set(result["pairs"]) == {"p2p-node", "curl"}
    for figures in result["pairs"].values():
        positive(figures, "reader_s_per_gb", "both_s_per_gb", "start_s", "gb_per_s")
        assert len(figures["runs"]) == 1
    assert len(result["cpu_to_curl"]) == len(result["cpu_to_curl_with_start"]) == 1
    assert "bench peer --size 2MiB --runs 1" in printed
    assert ("--workers 2" in printed) == (count == 2)


def test_workers_moves_and_hashes_with_each_count(written):
    result, printed = written(workers.measure, "20MiB", 1, moving=(1, 2), warm_up=False)
    assert set(result["moving"]) == {"1", "2"}
    assert set(result["hashing"]) == {"1", "2"}
    for runs in (*result["moving"].values(), *result["hashing"].values()):
        positive(runs[0], "gb_per_s")
    assert "bench workers --size 20MiB --runs 1" in printed


def test_hash_measures_the_digest_and_both_checksums(written):
    result, _ = written(hash.measure, blocks=2, runs=1)
    assert set(result["gb_per_s"]) == {"xxh3-128", "crc64xz", "crc64nvme"}
    for figures in result["gb_per_s"].values():
        assert all(one > 0 for runs in figures.values() for one in runs)


def test_store_measures_opening_recording_and_the_journal(written):
    result, _ = written(store.measure, chunks=64, runs=1)
    (run,) = result["runs_us"]
    positive(run, *run)
    assert len(run) == 5
    assert result["chunks"] == 64


def test_a_size_that_does_not_fit_is_refused_before_anything_starts():
    with pytest.raises(SystemExit, match="give a smaller --size"):
        peer.measure("1024TiB", 1, None, None)
    with pytest.raises(SystemExit, match="size"):
        workers.measure("much", 1, None)


def test_read_compares_python_and_the_mount_with_the_least_that_they_can_cost(written):
    result, printed = written(read.measure, "4MiB", 1)
    assert set(result["ratios"]) == {"readinto", "read (a view)", "dd, ours", "populated, ours"}
    for rates in result["gb_per_s"].values():
        assert all(rate > 0 for rate in rates)
    assert "bench read --size 4MiB --runs 1" in printed
