"""Settings of a computation: what "auto" becomes, and what is refused where it cannot be had."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import multipatch_jax as mp
from multipatch_jax.nn import Target, native, resolve_compute, this_machine

AUTO = mp.Compute()
HAS_NATIVE = jax.default_backend() == "cpu" and native.best_build() is not None


def test_auto_is_decided_by_platform_and_dtype():
    found = {
        (platform, dtype): resolve_compute(AUTO, dtype, Target(platform)).attention
        for platform in ("cpu", "tpu", "cuda", "gpu")
        for dtype in ("float32", "bfloat16")
    }
    assert found == {
        ("cpu", "float32"): "blocked",
        ("cpu", "bfloat16"): "blocked",
        ("tpu", "float32"): "pallas_tpu",
        ("tpu", "bfloat16"): "pallas_tpu",
        ("cuda", "float32"): "plain",
        ("cuda", "bfloat16"): "cudnn",
        ("gpu", "float32"): "plain",
        ("gpu", "bfloat16"): "plain",
    }
    for dtype in ("float32", "bfloat16"):
        here = resolve_compute(AUTO, dtype)
        assert here.encoder == ("native" if HAS_NATIVE else "flax")
        assert here == resolve_compute(AUTO, dtype, this_machine())
    assert resolve_compute(AUTO, "float16").encoder == "flax"


@pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda"])
def test_an_export_has_no_code_compiled_here(platform):
    assert resolve_compute(AUTO, "float32", Target(platform, exported=True)).encoder == "flax"


def test_what_is_decided_stays_as_it_is():
    for dtype in ("float32", "bfloat16"):
        decided = resolve_compute(AUTO, dtype)
        assert resolve_compute(decided, "float16") == decided
        assert decided.dtype == dtype
        assert decided.precision == ("highest" if dtype == "float32" else "default")
    assert resolve_compute(mp.Compute(precision="high"), "float32").precision == "high"


def test_a_named_kernel_is_called_so_the_compiled_encoder_is_not():
    assert resolve_compute(mp.Compute(attention="plain"), "float32").encoder == "flax"


@pytest.mark.parametrize(
    ("settings", "platform", "message"),
    [
        ({"encoder": "native", "dtype": "float16"}, "cpu", "encoder=.native. is for float32, bfloat16.*there is flax"),
        ({"encoder": "native"}, "cuda", "encoder=.native. is for .* on cpu.*got float32 on this machine's cuda"),
        ({"attention": "cudnn"}, "cuda", "attention=.cudnn. is for bfloat16, float16 on cuda.*there is blocked, plain"),
        ({"attention": "cudnn", "dtype": "bfloat16"}, "cpu", "got bfloat16 on this machine's cpu, where there is"),
        ({"attention": "cudnn", "dtype": "bfloat16"}, "gpu", "Ampere. or later.* got bfloat16 on this machine.s gpu"),
        ({"attention": "pallas_tpu"}, "cpu", "attention=.pallas_tpu. is for .* on tpu; got float32 on this machine's"),
    ],
)
def test_what_cannot_be_had_is_refused_with_what_there_is(settings, platform, message):
    with pytest.raises(ValueError, match=f"{message}.*Or choose .auto."):
        resolve_compute(mp.Compute(**settings), "float32", Target(platform))


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_the_compiled_encoder_is_never_exported(platform):
    with pytest.raises(ValueError, match=r"encoder=.native. .*a program for this machine.*in an export for"):
        resolve_compute(mp.Compute(encoder="native"), "float32", Target(platform, exported=True))


@pytest.mark.parametrize("compute", [None, "bfloat16", {"dtype": "bfloat16"}])
def test_what_is_no_compute_is_refused(compute, tiny, tiny_tiles):
    with pytest.raises(ValueError, match=r"compute must be an mp\.Compute, such as .*, got"):
        mp.encode_tiles(tiny.params, tiny_tiles, config=tiny.config, compute=compute)


def test_an_unknown_platform_is_refused():
    with pytest.raises(ValueError, match=r"Target\.platform must be one of .*got 'rocm'"):
        Target("rocm")


def test_params_of_another_kind_are_refused():
    with pytest.raises(ValueError, match="Params must be in one of float32, bfloat16, float16, got int8"):
        resolve_compute(AUTO, "int8")


@pytest.mark.parametrize("call", ["image", "tiles", "images", "features", "warmup", "frames", "export"])
def test_every_call_refuses_a_setting_before_device_work(call, tiny, tiny_tiles, photo, tmp_path):
    options = {"config": tiny.config, "compute": mp.Compute(dtype="float16", encoder="native")}
    calls = {
        "image": lambda: mp.encode_image(tiny.params, photo, **options),
        "tiles": lambda: mp.encode_tiles(tiny.params, tiny_tiles, **options),
        "images": lambda: mp.iter_encode_images(tiny.params, [photo], **options),
        "features": lambda: mp.vision_features(tiny.params, np.zeros((1, 64, 64, 3), np.float32), **options),
        "warmup": lambda: mp.warmup(tiny.params, **options),
        "frames": lambda: mp.text.encode_frames(tiny.params, [photo], **options),
        "export": lambda: mp.export_encoder(
            tmp_path / "out", options["config"], tiny.params, compute=options["compute"], platforms=["cpu"]
        ),
    }
    with (
        mp.encode.count_compilations() as compiled,
        pytest.raises(ValueError, match=r"encoder=.native. is for float32, bfloat16"),
    ):
        calls[call]()
    assert compiled == []
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "int8"}, "Compute.dtype must be one of"),
        ({"attention": "native"}, "Compute.attention must be one of"),
        ({"encoder": "jax"}, "Compute.encoder must be one of"),
        ({"precision": "best"}, "Compute.precision must be one of"),
        ({"remat": "yes"}, "Compute.remat must be one of"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        mp.Compute(**settings)


def applied(module: nn.Module, params: Any, *inputs: Any) -> Any:
    return module.apply({"params": params}, *inputs)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_module_by_itself_computes_in_the_dtype_of_its_params(dtype, tiny):
    params = jax.tree.map(lambda x: x.astype(dtype), tiny.params)
    pixels = jnp.ones((64, 64, 3))
    features, _ = applied(mp.nn.VisionTransformer(tiny.config.vision), params["vision_model"], pixels)
    tokens = applied(mp.Idefics3Connector(tiny.config.connector), params["connector"], features)
    whole = applied(mp.MultiPatchVisionProcessor(tiny.config), params, pixels)
    assert features.dtype == tokens.dtype == whole.dtype == dtype
    np.testing.assert_array_equal(tokens, whole)
    as_asked = applied(mp.MultiPatchVisionProcessor(tiny.config, mp.Compute(dtype="float32")), params, pixels)
    assert as_asked.dtype == jnp.float32
