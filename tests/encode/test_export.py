"""Exported programs: the CPU's gives the live tokens without this package; the others are as they say."""

import json

import jax
import numpy as np
import pytest

import multipatch_jax as mp
from multipatch_jax.encode import export
from tests.helpers.processes import python_output

# What the README tells a reader to do.
READER = """
import json, sys
sys.modules["multipatch_jax"] = sys.modules["flax"] = None  # importing them would fail
import jax, jax.export, numpy as np
folder, tiles, out = sys.argv[1:]
manifest = json.load(open(f"{folder}/manifest.json"))
program = jax.export.deserialize(bytearray(open(f"{folder}/cpu.jax_export", "rb").read()))
stored = np.load(f"{folder}/params.npz")
params = {name: stored[name].view(jax.numpy.dtype(x["dtype"])) for name, x in manifest["params"].items()}
np.save(out, np.asarray(jax.jit(program.call)(params, np.load(tiles)), np.float32))
"""


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def exported(request, tiny, tiny_tiles, tmp_path_factory):
    """(folder, manifest, params) of the tiny model's programs for every platform."""
    folder = tmp_path_factory.mktemp("exported") / "out"
    params = jax.tree.map(lambda x: x.astype(request.param), tiny.params)
    return folder, mp.export_encoder(folder, tiny.config, params), params


def live_tokens(params, tiles, tiny, **options):
    """With "blocked" attention, as in a CPU's program: our compiled encoder cannot be exported."""
    return mp.encode_tiles(params, tiles, config=tiny.config, compute=mp.Compute(attention="blocked"), **options)


def test_a_process_without_this_package_gives_the_live_tokens(exported, tiny, tiny_tiles, tmp_path):
    folder, _, params = exported
    np.save(tmp_path / "tiles.npy", tiny_tiles)
    python_output("-c", READER, folder, tmp_path / "tiles.npy", tmp_path / "tokens.npy", cwd=tmp_path)
    live = live_tokens(params, tiny_tiles, tiny)
    np.testing.assert_array_equal(np.load(tmp_path / "tokens.npy"), np.asarray(live, np.float32))


@pytest.mark.parametrize("num_tiles", [1, 3, 13])
def test_a_loaded_program_takes_any_number_of_tiles(exported, num_tiles, tiny, tiny_tiles):
    folder, _, params = exported
    tokens = mp.load_exported(folder)(tiny_tiles[:num_tiles])
    live = live_tokens(params, tiny_tiles[:num_tiles], tiny)
    assert tokens.dtype == live.dtype
    np.testing.assert_array_equal(np.asarray(tokens), np.asarray(live))


def test_several_tiles_in_flight_and_a_rest(tiny, tiny_tiles, tmp_path, capsys):
    mp.export_encoder(tmp_path / "out", tiny.config, tiny.params, platforms=["cpu"], batch_size=4, progress=True)
    assert "exporting: 100%" in capsys.readouterr().err
    tokens = mp.load_exported(tmp_path / "out")(tiny_tiles[:6])
    live = live_tokens(tiny.params, tiny_tiles[:6], tiny, batch_size=4)
    np.testing.assert_allclose(tokens, live, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("platform", export.PLATFORMS)
def test_every_program_deserialises_and_names_its_platform(exported, platform, tiny):
    folder, manifest, params = exported
    entry = manifest["platforms"][platform]
    program = jax.export.deserialize(bytearray((folder / entry["file"]).read_bytes()))
    assert program.platforms == (platform,)
    side, batch = tiny.config.tiling.tile_size, {"cpu": 1, "tpu": 8, "cuda": 17}[platform]
    assert str(program.in_avals[-1].shape) == f"({'' if batch == 1 else f'{batch}*'}n, {side}, {side}, 3)"
    assert entry["batch_size"] == batch
    dtype = params["connector"]["modality_projection"]["proj"]["kernel"].dtype
    assert program.out_avals[0].dtype == manifest["dtype"] == dtype
    assert ("tpu_custom_call" in program.mlir_module()) == (entry["attention"] == "pallas_tpu") == (platform == "tpu")


def test_the_manifest_says_it_all(exported, tiny):
    folder, manifest, _ = exported
    assert json.loads((folder / "manifest.json").read_text()) == json.loads(json.dumps(manifest))
    assert manifest["versions"] == {"multipatch_jax": mp.__version__, "jax": jax.__version__, "jaxlib": jax.__version__}
    assert {path.name for path in folder.iterdir()} == {
        "manifest.json",
        "params.npz",
        "cpu.jax_export",
        "cuda.jax_export",
        "tpu.jax_export",
    }


def test_bad_tiles_are_refused_before_the_program(exported):
    encode = mp.load_exported(exported[0])
    with pytest.raises(ValueError, match=r"tiles must be uint8 of shape \(N, 64, 64, 3\), got float32"):
        encode(np.zeros((1, 64, 64, 3), np.float32))


def test_a_platform_that_was_not_exported_is_refused(tiny, tmp_path):
    mp.export_encoder(tmp_path / "out", tiny.config, tiny.params, platforms=["tpu"])
    with pytest.raises(FileNotFoundError, match=r"holds programs for tpu, got platform cpu; export one for it"):
        mp.load_exported(tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=r"has no manifest.json, so it is not a folder that export"):
        mp.load_exported(tmp_path)


def test_bad_arguments_leave_nothing_behind(tiny, tmp_path, monkeypatch):
    def run(**options):
        mp.export_encoder(tmp_path / "out", tiny.config, tiny.params, **options)

    with pytest.raises(ValueError, match=r"platforms must be some of cpu, cuda, tpu, got metal"):
        run(platforms=["metal"])
    with pytest.raises(ValueError, match=r"platforms must be some of cpu, cuda, tpu, got none"):
        run(platforms=[])
    with pytest.raises(ValueError, match=r"batch_size must be a positive number"):
        run(batch_size=0)
    with pytest.raises(ValueError, match=r"params"):
        mp.export_encoder(tmp_path / "out", mp.presets.SMOLVLM_256M, tiny.params)
    find_spec = export.importlib.util.find_spec
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None if "cuda" in name else find_spec(name))
    with pytest.raises(ValueError, match=r"needs an NVIDIA GPU .* to be exported the CUDA wheels"):
        run(compute=mp.Compute(attention="cudnn", dtype="bfloat16"), platforms=["cuda"])
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'need flatbuffers: pip install "multipatch_jax\[export\]"'):
        run()
    assert list(tmp_path.iterdir()) == []
