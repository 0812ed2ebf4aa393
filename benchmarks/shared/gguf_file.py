"""Writes the language model of a checkpoint as a file that llama.cpp reads. Needs the library `gguf`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

LAYER = {  # llama.cpp's name -> transformers'
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
TEXT = "model.text_model"


def write_gguf(folder: Path, file: Path, dtype: str) -> None:
    """Writes the file.

    Args:
      folder: the checkpoint, in transformers' layout, with one file of weights and tokenizer.json.
      file: what is written.
      dtype: of the matrices: "float32", "bfloat16", or "int8", which is llama.cpp's Q8_0.
    """
    import gguf  # pyright: ignore[reportMissingImports]  # only the `bench` extra installs it

    matrix = gguf.GGMLQuantizationType
    kinds_of_matrices = {"float32": matrix.F32, "bfloat16": matrix.BF16, "int8": matrix.Q8_0}
    config = json.loads((folder / "config.json").read_text())["text_config"]
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    special = {token["id"] for token in tokenizer["added_tokens"]}
    vocabulary = sorted(tokenizer["model"]["vocab"].items(), key=lambda item: item[1])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([token for token, _ in vocabulary])
    kinds = gguf.TokenType
    writer.add_token_types([kinds.CONTROL if index in special else kinds.NORMAL for _, index in vocabulary])
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    for name, tensor in _tensors(folder, config):
        kind = kinds_of_matrices[dtype] if tensor.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(f"{name}.weight", gguf.quants.quantize(tensor, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensors(folder: Path, config: dict[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """(llama.cpp's name, tensor) of the language model."""
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "numpy") as stored:

        def read(name: str) -> np.ndarray:
            return stored.get_tensor(f"{name}.weight").astype(np.float32)

        yield "token_embd", read(f"{TEXT}.embed_tokens")
        yield "output_norm", read(f"{TEXT}.norm")
        yield "output", read("lm_head")
        heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
        for layer in range(config["num_hidden_layers"]):
            for name, theirs in LAYER.items():
                tensor = read(f"{TEXT}.layers.{layer}.{theirs}")
                if name in heads:  # llama.cpp turns neighbouring rows of a head, transformers the halves of a head
                    halves = tensor.reshape(heads[name], 2, -1, tensor.shape[1])
                    tensor = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(tensor.shape)
                yield f"blk.{layer}.{name}", tensor
