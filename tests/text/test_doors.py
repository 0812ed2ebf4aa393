"""Arguments of another kind, frames and files that cannot be read: refused at once, by name."""

import json
import shutil
from typing import Any

import numpy as np
import pytest

import multipatch_jax as mp
from multipatch_jax.text import VideoPlan

IDS, FRAME = np.ones((1, 2), np.int32), np.zeros((3, 3, 3), np.uint8)
NONE: Any = None
CALLS: dict[str, Any] = {
    "assistant_mask must be of integers, 0 or 1, got float32": lambda m: mp.text.labels_for(
        IDS, image_token_id=1, assistant_mask=np.array([[0.5, 1]], np.float32)
    ),
    "longer than 1000000000 seconds, got 10 frames at 1e-320": lambda m: mp.text.sample_frames(10, 1e-320),
    "VideoPlan.indices must be a tuple": lambda m: VideoPlan(NONE, 1, 1),
    "An index of a VideoPlan must be an integer of at least 0, got -1": lambda m: VideoPlan((-1,), 1, 1),
    "VideoPlan.fps must be a finite number above 0, got 0": lambda m: VideoPlan((0,), 0, 1),
    "VideoPlan.duration must be a finite number of at least 0, got nan": lambda m: VideoPlan((0,), 1, float("nan")),
    "must not be longer than 1000000000 seconds, got fps 1e-300": lambda m: VideoPlan((5,), 1e-300, 1),
    "folder or its hub id, got None": lambda m: mp.Processor.from_pretrained(NONE),
    "folder or its hub id, got ''": lambda m: mp.Processor.from_pretrained(""),
    "add_generation_prompt must be True, False or None, got 1": lambda m: m.ours(
        ["a"], config=m.config, add_generation_prompt=1
    ),
    "add_generation_prompt must be True, False or None, got 'no'": lambda m: m.ours.render(
        [{"role": "user", "content": "a"}], add_generation_prompt="no"
    ),
    "A text must be valid Unicode": lambda m: m.ours(["a\ud800"], config=m.config),
    "ids must be integers from 0 of shape .* <U3": lambda m: m.ours.decode("abc"),
    "ids must be integers from 0 of shape .* int64": lambda m: m.ours.decode([-1]),
    "ids must be integers from 0 of shape .* shape .1, 2.": lambda m: m.ours.decode([[1, 2]]),
    "processor must be a Processor, got None": lambda m: mp.prepare_inputs(
        m.params, ["a"], config=m.config, processor=NONE
    ),
    "config must be a ModelConfig, got PosixPath": lambda m: mp.prepare_inputs(
        m.params, ["a"], config=m.folder, processor=m.ours
    ),
}


@pytest.mark.parametrize("message", CALLS)
def test_an_argument_of_another_kind_is_refused_at_the_door(message, model, compilations):
    with pytest.raises(ValueError, match=message):
        CALLS[message](model)
    assert not compilations()


def test_frames_that_cannot_be_read_are_named_before_anything_is_encoded(model, compilations):
    for bad, kind in ((np.zeros((0, 3, 3), np.uint8), mp.ImageError), ("https://x/a.png", FileNotFoundError)):
        part = {"type": "video", "video": [FRAME, bad], "fps": 1}
        chat = [{"role": "user", "content": [{"type": "image", "image": FRAME}, part]}]
        with pytest.raises(kind) as caught:
            mp.prepare_inputs(model.params, [chat], config=model.config, processor=model.ours)
        assert caught.value.__notes__ == ["This was frame 1 of video 0."]
    assert not compilations()


@pytest.mark.parametrize(
    ("key", "value"), [("bos_token", 5), ("pad_token", ["a"]), ("eos_token", {}), ("eos_token", {"content": 5})]
)
def test_a_token_of_another_kind_is_named_with_its_file(key, value, model, tmp_path):
    shutil.copy(model.folder / "tokenizer.json", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": True, "unk_token": None, key: value}))
    with pytest.raises(ValueError, match=rf"tokenizer_config\.json: {key} must be a text, or an object"):
        mp.Processor.from_pretrained(tmp_path)
