"""Every member of the family and every layout of its files: each tensor accounted for, both ways, bit for bit."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForImageTextToText

import multipatch_jax as mp
import multipatch_reference as reference
from multipatch_jax.checkpoint import config_from_hf, config_to_hf
from tests.conftest import TINY, with_layers

ROOT = Path(__file__).parent.parent
ALL = ("vision", "connector", "text")


def load_with_transformers(folder):
    model, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True, dtype="auto")
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    return model


def assert_same_files(a, b):
    a, b = load_file(a / "model.safetensors"), load_file(b / "model.safetensors")
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        assert a[name].tobytes() == b[name].tobytes(), name


# ---------------------------------------------------------------------------------------------------------------------
# Configs.


@pytest.mark.parametrize("name", mp.PRESETS)
def test_every_preset_survives_hugging_faces_json(name):
    config, preprocessor = json.loads(json.dumps(config_to_hf(mp.PRESETS[name])))
    assert config_from_hf(config, preprocessor) == mp.PRESETS[name]


def test_the_sparse_json_of_smolvlm2_500m():
    """As on its model card: layers, MLP width and eps come from the reference's class defaults."""
    config = {
        "architectures": ["SmolVLMForConditionalGeneration"],
        "image_token_id": 49190,
        "model_type": "smolvlm",
        "pad_token_id": 128002,
        "scale_factor": 4,
        "text_config": {
            "architectures": ["VLlama3ForCausalLM"],
            "head_dim": 64,
            "hidden_size": 960,
            "intermediate_size": 2560,
            "is_llama_config": True,
            "max_position_embeddings": 8192,
            "model_type": "llama",
            "neftune_noise_alpha": 0.0,
            "num_attention_heads": 15,
            "num_hidden_layers": 32,
            "num_key_value_heads": 5,
            "pad_token_id": 2,
            "pixel_shuffle_factor": 4,
            "qk_layer_norms": False,
            "rms_norm_eps": 1e-05,
            "rope_interleaved": False,
            "rope_theta": 100000,
            "torch_dtype": "bfloat16",
            "use_resampler": False,
            "vocab_size": 49280,
        },
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "transformers_version": "4.47.1",
        "use_cache": False,
        "use_reentrant_checkpointing": False,
        "vision_config": {
            "hidden_size": 768,
            "image_size": 512,
            "max_image_size": {"longest_edge": 512},
            "model_type": "smolvlm_vision",
            "num_attention_heads": 12,
            "patch_size": 16,
            "size": {"longest_edge": 2048},
            "tie_word_embeddings": False,
            "use_base_siglip": False,
        },
        "vocab_size": 49280,
    }
    preprocessor = {
        "do_image_splitting": True,
        "image_processor_type": "SmolVLMImageProcessor",
        "max_image_size": {"longest_edge": 512},
        "processor_class": "SmolVLMProcessor",
        "resample": 1,
        "size": {"longest_edge": 2048},
        "video_sampling": {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": 512}},
    }
    assert config_from_hf(config, preprocessor) == mp.PRESETS["SmolVLM2-500M-Video-Instruct"]


def test_policies_of_ours_cannot_be_exported():
    config = dataclasses.replace(TINY, tiling=dataclasses.replace(TINY.tiling, upscale=False))
    with pytest.raises(ValueError, match=r"cannot say .*'upscale': False"):
        config_to_hf(config)


@pytest.mark.parametrize("model_type", ["idefics3", "smolvlm"])
def test_the_reference_reads_our_json_as_the_same_model(model_type):
    hf = reference.hf_config(dataclasses.replace(mp.presets.SMOLVLM_2_2B, model_type=model_type))
    assert hf.model_type == model_type
    assert hf.vision_config.intermediate_size == 4304
    assert hf.text_config.rope_parameters["rope_theta"] == 273768.0
    assert hf.scale_factor == 3


# ---------------------------------------------------------------------------------------------------------------------
# Parameters.


@pytest.mark.parametrize(
    ("name", "tensors", "parameters"),
    [
        ("SmolVLM-256M-Instruct", 471, 256_484_928),
        ("SmolVLM-500M-Instruct", 489, 507_482_304),
        ("SmolVLM-Instruct", 657, 2_246_272_880),
        ("SmolVLM2-256M-Video-Instruct", 471, 256_484_928),
        ("SmolVLM2-500M-Video-Instruct", 489, 507_482_304),
        ("SmolVLM2-2.2B-Instruct", 657, 2_246_784_880),
        ("Idefics3-8B-Llama3", 729, 8_462_086_384),
        ("granite-docling-258M", 470, 257_517_120),
    ],
)
def test_totals_of_the_whole_model(name, tensors, parameters):
    config = mp.PRESETS[name]
    assert len(mp.params.tensors(config)) == tensors
    assert mp.params.count_parameters(mp.params.param_shapes(config, mp.params.PARTS).values()) == parameters


@pytest.mark.parametrize("name", ["SmolVLM-Instruct", "SmolVLM2-500M-Video-Instruct", "Idefics3-8B-Llama3"])
def test_names_and_shapes_equal_the_references_own(name):
    config = mp.PRESETS[name]
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(reference.hf_config(config))
    theirs = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert {name: tensor.shape for name, tensor in mp.params.tensors(config).items()} == theirs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("model_type", ["idefics3", "smolvlm"])
@pytest.mark.parametrize("tied", [False, True])
def test_there_and_back(dtype, model_type, tied, tmp_path):
    text = dataclasses.replace(TINY.text, tie_word_embeddings=tied)
    config = dataclasses.replace(TINY, model_type=model_type, text=text)
    model = reference.reference_model(config)
    model.tie_weights()
    reference.save_checkpoint(model.to(dtype), config, tmp_path / "theirs")
    loaded, params = mp.from_pretrained(tmp_path / "theirs", parts=ALL)
    assert loaded == config
    mp.export_hf(tmp_path / "ours", loaded, params)
    assert_same_files(tmp_path / "theirs", tmp_path / "ours")
    again = load_with_transformers(tmp_path / "ours")
    assert again.dtype == dtype
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_mixed_dtypes_there_and_back(tiny, tmp_path):
    tensors = load_file(tiny.folder / "model.safetensors")
    mixed = {k: v.astype(ml_dtypes.bfloat16) if "text_model" in k else v for k, v in tensors.items()}
    mixed["model.vision_model.post_layernorm.bias"] = mixed["model.vision_model.post_layernorm.bias"].astype(np.float16)
    (tmp_path / "theirs").mkdir()
    for file in tiny.folder.glob("*.json"):
        (tmp_path / "theirs" / file.name).write_bytes(file.read_bytes())
    save_file(mixed, tmp_path / "theirs" / "model.safetensors", metadata={"format": "pt"})
    config, params = mp.from_pretrained(tmp_path / "theirs", parts=ALL)
    mp.save_pretrained(tmp_path / "saved", config, params)
    config, params = mp.from_pretrained(tmp_path / "saved", parts=ALL)
    mp.export_hf(tmp_path / "ours", config, params)
    assert_same_files(tmp_path / "theirs", tmp_path / "ours")


def test_export_takes_what_is_missing_from_the_base(tiny, tmp_path):
    (tiny.folder / "tokenizer.json").write_text("{}")
    params = jax.tree.map(lambda x: x, tiny.params)
    kernel = params["connector"]["modality_projection"]["proj"]["kernel"]
    params["connector"]["modality_projection"]["proj"]["kernel"] = kernel + 1
    mp.export_hf(tmp_path / "tuned", tiny.config, params, base=tiny.folder)
    (tiny.folder / "tokenizer.json").unlink()
    assert (tmp_path / "tuned" / "tokenizer.json").is_file()
    load_with_transformers(tmp_path / "tuned")
    before, after = load_file(tiny.folder / "model.safetensors"), load_file(tmp_path / "tuned" / "model.safetensors")
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {"model.connector.modality_projection.proj.weight"}


def test_flax_to_hf_command(tiny, tmp_path):
    config, params = mp.from_pretrained(tiny.folder, parts=ALL)
    mp.save_pretrained(tmp_path / "saved", config, params)
    command = [sys.executable, ROOT / "convert" / "flax_to_hf.py"]
    done = subprocess.run([*command, tmp_path / "saved", tmp_path / "hf"], capture_output=True, text=True, env=ENV)
    assert done.returncode == 0, done.stderr
    assert_same_files(tiny.folder, tmp_path / "hf")
    done = subprocess.run([*command, tmp_path / "saved", tmp_path / "hf"], capture_output=True, text=True, env=ENV)
    assert done.returncode == 2
    assert "hf exists; delete it or choose another name" in done.stderr


ENV = os.environ | {"PYTHONPATH": str(ROOT)}


# ---------------------------------------------------------------------------------------------------------------------
# Layouts other than today's.


def relaid(tiny, folder, rename, **config):
    """The tiny checkpoint with its tensors renamed, and keys of its config.json replaced."""
    folder.mkdir()
    tensors = load_file(tiny.folder / "model.safetensors")
    for file in tiny.folder.glob("*.json"):
        (folder / file.name).write_bytes(file.read_bytes())
    if config:
        (folder / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | config))
    save_file(rename(tensors), folder / "model.safetensors")
    return folder


def assert_same_params(params, tiny, parts=("vision", "connector")):
    _, expected = mp.from_pretrained(tiny.folder, parts=parts)
    assert mp.params.flatten(params).keys() == mp.params.flatten(expected).keys()
    for path, array in mp.params.flatten(expected).items():
        np.testing.assert_array_equal(mp.params.flatten(params)[path], array, err_msg=path)


def test_saved_without_its_head(tiny, tmp_path):
    bare = relaid(
        tiny, tmp_path / "bare", lambda t: {k.removeprefix("model."): v for k, v in t.items() if "lm" not in k}
    )
    assert_same_params(mp.from_pretrained(bare)[1], tiny)


def test_the_first_training_codes_layout(tiny, tmp_path):
    def rename(tensors):
        old = {}
        for name, value in tensors.items():
            name = name.replace("model.connector.modality_projection", "model.modality_projection")
            name = name.replace("model.text_model.", "model.")
            old[name] = value
        table, head = old.pop("model.embed_tokens.weight"), old.pop("lm_head.weight")
        old |= {"model.embed_tokens.weight": table[:150], "lm_head.weight": head[:150]}
        old |= {"model.embed_tokens.additional_embedding.weight": table[150:]}
        old |= {"lm_head.additional_fc.weight": head[150:]}
        old |= {"model.vision_model.head.probe": np.zeros((1, 1, 96), np.float32)}
        return {name: np.ascontiguousarray(value) for name, value in old.items()}

    old = relaid(tiny, tmp_path / "old", rename)
    assert_same_params(mp.from_pretrained(old, parts=ALL)[1], tiny, ALL)


def test_colidefics3(tiny, tmp_path):
    rng = np.random.default_rng(0)
    head = {"linear.weight": rng.normal(size=(128, 48)), "linear.bias": rng.normal(size=128)}

    def rename(tensors):
        del tensors["lm_head.weight"]
        return tensors | {name: value.astype(np.float32) for name, value in head.items()}

    folder = relaid(tiny, tmp_path / "col", rename, architectures=["ColIdefics3"])
    config, params = mp.from_pretrained(folder, parts=ALL)
    assert config.embedding_size == 128
    hidden = rng.normal(size=(2, 7, 48)).astype(np.float32)
    mask = np.ones((2, 7), np.int32)
    mask[1, 4:] = 0
    vectors = mp.nn.retrieval_embeddings(params, hidden, mask)
    expected = hidden @ head["linear.weight"].T + head["linear.bias"]
    expected = expected / np.linalg.norm(expected, axis=-1, keepdims=True) * mask[..., None]
    np.testing.assert_allclose(vectors, expected, rtol=1e-4, atol=1e-6)
    assert_same_params(mp.from_pretrained(folder)[1], tiny)


def test_the_tower_inside_smolvla(tmp_path):
    config = dataclasses.replace(mp.PRESETS["SmolVLM2-500M-Video-Instruct"], text=None)
    rng = np.random.default_rng(0)
    prefix = "model.vlm_with_expert.vlm."
    tensors = {
        prefix + name: rng.normal(size=tensor.shape).astype(ml_dtypes.bfloat16)
        for name, tensor in mp.params.tensors(config).items()
    }
    foreign = {
        prefix + "model.text_model.norm.weight": np.ones(960, np.float32),
        prefix + "lm_head.weight": np.ones((4, 960), np.float32),
        "model.vlm_with_expert.lm_expert.norm.weight": np.ones(720, np.float32),
        "model.state_proj.weight": np.ones((960, 32), np.float32),
        "normalize_inputs.buffer_observation_state.mean": np.ones(6, np.float32),
    }
    save_file(tensors | foreign, tmp_path / "model.safetensors")
    policy = {"type": "smolvla", "vlm_model_name": "HuggingFaceTB/SmolVLM2-500M-Video-Instruct", "n_obs_steps": 1}
    (tmp_path / "config.json").write_text(json.dumps(policy))
    loaded, params = mp.from_pretrained(tmp_path)
    assert loaded == config
    for name, value in mp.params.from_params(config, params):
        np.testing.assert_array_equal(value, tensors[prefix + name])
    (tmp_path / "config.json").write_text(json.dumps(policy | {"vlm_model_name": "someone/else"}))
    with pytest.raises(ValueError, match=r"vlm_model_name must be one of .* got 'else'"):
        mp.from_pretrained(tmp_path)


# ---------------------------------------------------------------------------------------------------------------------
# The real sizes.


def whole_checkpoint(name, folder):
    """All tensors of a preset in bfloat16, language model included: random bytes, so written straight to the file."""
    config = mp.PRESETS[name]
    rng = np.random.default_rng(0)
    tensors = {
        name: rng.integers(0x3C00, 0x3F80, tensor.shape, np.uint16).view(ml_dtypes.bfloat16)
        for name, tensor in mp.params.tensors(config).items()
    }
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for file, content in zip(("config.json", "preprocessor_config.json"), config_to_hf(config), strict=True):
        (folder / file).write_text(json.dumps(content))
    return config


@pytest.mark.parametrize(
    "name", ["SmolVLM-256M-Instruct", pytest.param("SmolVLM-500M-Instruct", marks=pytest.mark.slow)]
)
def test_the_whole_checkpoint_there_and_back(name, tmp_path):
    config = whole_checkpoint(name, tmp_path / "theirs")
    loaded, params = mp.from_pretrained(tmp_path / "theirs", parts=ALL)
    assert loaded == config
    mp.save_pretrained(tmp_path / "saved", loaded, params)
    del params
    loaded, params = mp.from_pretrained(tmp_path / "saved", parts=ALL)
    mp.export_hf(tmp_path / "ours", loaded, params)
    assert_same_files(tmp_path / "theirs", tmp_path / "ours")


MEASURE = """
import resource, sys
import multipatch_jax as mp, jax
import orbax.checkpoint
jax.devices()
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
config, params = mp.from_pretrained(sys.argv[1])
loaded = sum(x.nbytes for x in jax.tree.leaves(params))
print((peak() - before) / loaded)
"""


def test_loading_takes_under_half_again_of_what_is_loaded(tmp_path):
    config = whole_checkpoint("SmolVLM-256M-Instruct", tmp_path / "theirs")
    done = subprocess.run([sys.executable, "-c", MEASURE, tmp_path / "theirs"], capture_output=True, text=True, env=ENV)
    assert float(done.stdout) < 1.5, (done.stdout, done.stderr)
    loaded, params = mp.from_pretrained(tmp_path / "theirs")
    assert loaded == config
    mp.save_pretrained(tmp_path / "saved", loaded, params)
    done = subprocess.run([sys.executable, "-c", MEASURE, tmp_path / "saved"], capture_output=True, text=True, env=ENV)
    assert float(done.stdout) < 1.5, (done.stdout, done.stderr)


def test_8b_shards_of_the_language_model_need_not_exist(tmp_path):
    """The vision part of an 8B-shaped checkpoint, of few layers: the shards beside it are not there to be read."""
    config = with_layers(mp.presets.IDEFICS3_8B, 2)
    names = mp.params.tensors(config)
    ours = {name: tensor for name, tensor in names.items() if tensor.part in ("vision", "connector")}
    rng = np.random.default_rng(0)
    arrays = {name: rng.integers(0, 99, t.shape, np.uint16).view(ml_dtypes.bfloat16) for name, t in ours.items()}
    save_file(arrays, tmp_path / "model-00001-of-00004.safetensors")
    weight_map = {name: f"model-0000{1 if name in ours else 2 + len(name) % 3}-of-00004.safetensors" for name in names}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for file, content in zip(("config.json", "preprocessor_config.json"), config_to_hf(config), strict=True):
        (tmp_path / file).write_text(json.dumps(content))
    loaded, params = mp.from_pretrained(tmp_path)
    assert loaded == config
    assert sum(x.nbytes for x in jax.tree.leaves(params)) == sum(x.nbytes for x in arrays.values())
    with pytest.raises(mp.CheckpointError, match="is not a whole safetensors file"):
        mp.from_pretrained(tmp_path, parts="embeddings")


RESHARD = """
import sys
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
import multipatch_jax as mp
mesh = jax.make_mesh((8,), ("x",))
def split(axis):
    def sharding(path, shape):
        spec = [None] * len(shape)
        if shape[axis] % 8 == 0:
            spec[axis] = "x"
        return NamedSharding(mesh, P(*spec))
    return sharding
config, rows = mp.from_pretrained(sys.argv[1], sharding=split(0))
mp.save_pretrained(sys.argv[2], config, rows)
_, cols = mp.from_pretrained(sys.argv[2], sharding=split(-1))
rows, cols = mp.params.flatten(rows), mp.params.flatten(cols)
for path in rows:
    np.testing.assert_array_equal(rows[path], cols[path])
kernel = cols["connector/modality_projection/proj/kernel"]
print(len(kernel.sharding.device_set), kernel.addressable_shards[0].data.shape)
"""


def test_restored_onto_a_mesh_with_another_layout(tiny, tmp_path):
    env = ENV | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", RESHARD, tiny.folder, tmp_path / "saved"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.stdout.strip() == "8 (1536, 6)", done.stderr


# ---------------------------------------------------------------------------------------------------------------------
# The verify command.


@pytest.mark.parametrize("spoil", [False, True])
def test_verify_names_the_first_stage_that_differs(spoil, tiny, photo, tmp_path):
    Image.fromarray(photo[:100, :90]).save(tmp_path / "photo.png")
    code = "import sys, runpy; sys.argv = sys.argv[1:]\n"
    if spoil:  # an eps of 1e-2 in ours alone: the embeddings are right, the first layer is not
        code += (
            "from multipatch_jax.nn import siglip; from flax import linen\n"
            "siglip._layer_norm = lambda config, name: linen.LayerNorm(1e-2, dtype=config.dtype, name=name)\n"
        )
    code += "runpy.run_path('convert/verify.py', run_name='__main__')"
    command = [sys.executable, "-c", code, "verify.py", tiny.folder, "--image", tmp_path / "photo.png"]
    done = subprocess.run(command, capture_output=True, text=True, env=ENV, cwd=ROOT, check=False)
    assert done.returncode == int(spoil), done.stdout + done.stderr
    last = done.stdout.strip().splitlines()[-1]
    assert last == ("The first stage that differs is: layer 0." if spoil else "Every stage agrees (limit 0.0001).")
