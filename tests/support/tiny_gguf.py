"""A llama model of random weights in two splits: small, but every tensor kind of a real one."""

from pathlib import Path

import gguf
import numpy as np

WIDTH, LAYERS, HEADS, KV_HEADS, FEED, WORDS = 256, 6, 8, 4, 704, 512


def write(folder: Path, seed: int) -> list[Path]:
    """Write it; the splits, the first one (which is to be opened) first."""
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(folder / "tiny.gguf", "llama", split_max_tensors=29)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("llama")
    words = [b"<unk>", b"<s>", b"</s>", *(f"<0x{byte:02X}>".encode() for byte in range(256))]
    words += [f"w{number}".encode() for number in range(WORDS - len(words))]
    kinds = [2, 3, 3, *[6] * 256, *[1] * (WORDS - 259)]
    writer.add_token_list(words)
    writer.add_token_scores([0.0] * WORDS)
    writer.add_token_types(kinds)

    def add(name: str, *shape: int) -> None:
        data = rng.standard_normal(shape, dtype=np.float32) / np.sqrt(shape[-1])
        writer.add_tensor(f"{name}.weight", data.astype(np.float16))

    def add_norm(name: str) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, dtype=np.float32))

    kv = WIDTH * KV_HEADS // HEADS
    add("token_embd", WORDS, WIDTH)
    for block in range(LAYERS):
        at = f"blk.{block}"
        add_norm(f"{at}.attn_norm")
        add(f"{at}.attn_q", WIDTH, WIDTH)
        add(f"{at}.attn_k", kv, WIDTH)
        add(f"{at}.attn_v", kv, WIDTH)
        add(f"{at}.attn_output", WIDTH, WIDTH)
        add_norm(f"{at}.ffn_norm")
        add(f"{at}.ffn_gate", FEED, WIDTH)
        add(f"{at}.ffn_up", FEED, WIDTH)
        add(f"{at}.ffn_down", WIDTH, FEED)
    add_norm("output_norm")
    add("output", WORDS, WIDTH)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(folder.glob("*.gguf"))
