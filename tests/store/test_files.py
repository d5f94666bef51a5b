from __future__ import annotations

import dataclasses
import json
import lzma
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from vader.settings.checks import later
from vader.store.files import (
    RunError,
    canonical,
    load_weights,
    pack_weights,
    plain,
    read_json,
    read_weights,
    save_weights,
    write_json,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@dataclasses.dataclass(frozen=True)
class Settings:
    rate: float = 0.5
    shape: tuple[int, ...] = (1, 2)


def test_plain_turns_dataclasses_and_tuples_into_json():
    assert plain({"stage": Settings()}) == {"stage": {"rate": 0.5, "shape": [1, 2]}}


@given(JSON)
def test_canonical_is_a_fixed_point_and_keeps_the_value(value):
    text = canonical(value)
    assert json.loads(text) == value
    assert canonical(json.loads(text)) == text


@given(st.dictionaries(st.text(), st.integers(), min_size=2))
def test_canonical_ignores_the_order_of_keys(value):
    assert canonical(dict(reversed(value.items()))) == canonical(value)


def test_canonical_tells_apart_what_compares_unequal_and_only_that():
    assert canonical(1.0) == canonical(1) and canonical(2.0**60) == canonical(2.0**60)
    assert len({canonical(value) for value in (1, 1.5, True, "1", None, [1], {"1": 1})}) == 7


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"a": [0, float("nan")]}, r"settings\.a\[1\] is nan"),
        ({"log": Path("x")}, r"settings\.log is a \w*Path"),
        ({"w": torch.zeros(1)}, r"settings\.w is a Tensor"),
        ({"x": np.float32(1)}, r"settings\.x is a float32"),
        ({1: 2}, "key 1 is a int"),
    ],
)
def test_plain_names_the_place_of_what_is_no_setting(value, place):
    with pytest.raises(RunError, match=place):
        plain(value)


def test_a_later_field_shows_only_where_it_departs_from_its_default():
    @dataclasses.dataclass(frozen=True)
    class Before:
        width: int = 3

    @dataclasses.dataclass(frozen=True)
    class After(Before):
        bias: bool = later(True)

    assert plain(After()) == plain(Before()) and plain({"net": After(4)}) == plain({"net": Before(4)})
    assert plain(After(bias=False)) == {"width": 3, "bias": False}


def test_write_json_keeps_the_old_file_when_the_new_one_cannot_be_written(tmp_path):
    file = tmp_path / "a.json"
    write_json(file, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(file, {"a": float("inf")})
    assert json.loads(file.read_text()) == {"a": 1}


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def test_weights_and_config_come_back_as_they_were(tmp_path):
    saved, loaded = network(), network()
    saved(torch.randn(5, 3))  # moves the batch norm's statistics and its integer count
    save_weights(tmp_path / "w.safetensors", saved, Settings())
    assert load_weights(tmp_path / "w.safetensors", loaded) == {"rate": 0.5, "shape": [1, 2]}
    for name, tensor in saved.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert not list(tmp_path.glob("*.tmp"))


def test_half_precision_rounds_floats_leaves_integers_and_is_stable(tmp_path):
    state = {"w": torch.tensor([1 / 3, 1.0]), "count": torch.tensor(2**40)}
    save_weights(tmp_path / "a.safetensors", state, {}, torch.float16)
    stored, _ = read_weights(tmp_path / "a.safetensors")
    assert stored["w"].dtype == torch.float16 and stored["count"].item() == 2**40
    save_weights(
        tmp_path / "b.safetensors", {k: v.float() if k == "w" else v for k, v in stored.items()}, {}, torch.float16
    )
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_half_precision_weights_load_into_a_float32_module(tmp_path):
    saved, loaded = network(), network()
    save_weights(tmp_path / "w.safetensors", saved, {}, torch.float16)
    load_weights(tmp_path / "w.safetensors", loaded)
    assert loaded[0].weight.dtype == torch.float32
    assert torch.equal(loaded[0].weight, saved[0].weight.half().float())


def test_a_value_that_half_precision_cannot_hold_is_named(tmp_path):
    with pytest.raises(RunError, match=r"w\.safetensors: big has values up to 1e\+05, more than torch.float16"):
        save_weights(tmp_path / "w.safetensors", {"big": torch.tensor([1e5])}, {}, torch.float16)
    assert not (tmp_path / "w.safetensors").exists()


def test_missing_extra_and_misshapen_tensors_are_all_named(tmp_path):
    file, module = tmp_path / "w.safetensors", network()
    state = module.state_dict()
    del state["0.bias"]
    state |= {"0.weight": torch.zeros(4, 2), "1.gain": torch.zeros(4)}
    save_weights(file, state, {})
    before = module[0].weight.clone()
    with pytest.raises(RunError) as error:
        load_weights(file, module)
    for part in (str(file), "0.bias is missing", "1.gain is extra", "0.weight is (4, 2), expected (4, 3)"):
        assert part in str(error.value)
    assert torch.equal(module[0].weight, before)


def test_a_damaged_file_an_absent_one_and_a_foreign_one_are_refused(tmp_path):
    file = tmp_path / "w.safetensors"
    with pytest.raises(RunError, match=r"w\.safetensors: no such"):
        read_weights(file)
    save_weights(file, network(), {})
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(RunError, match=r"w\.safetensors: not a readable"):
        read_weights(file)
    save_file({"a": torch.zeros(1)}, file)
    with pytest.raises(RunError, match="no JSON in 'config'"):
        read_weights(file)


def test_packed_weights_are_the_same_and_smaller(tmp_path):
    file, generator = tmp_path / "w.safetensors", torch.Generator().manual_seed(0)
    tensors = {
        "half": torch.randn(300, 200, generator=generator).half(),
        "full": torch.randn(3, 5, generator=generator),
        "count": torch.tensor(7),
        "flags": torch.tensor([True, False]),
        "none": torch.zeros(0, 4),
    }
    save_weights(file, tensors, {"name": "Größe"})
    plainly, size = read_weights(file), file.stat().st_size
    packed = pack_weights(file)
    assert packed.name == "w.safetensors.xz" and [path.name for path in tmp_path.iterdir()] == [packed.name]
    found, config = read_weights(packed)
    assert config == {"name": "Größe"} and found.keys() == tensors.keys()
    for name, tensor in plainly[0].items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)
    assert packed.stat().st_size < 0.88 * size
    content = packed.read_bytes()
    assert pack_weights(packed) == packed and packed.read_bytes() == content
    save_weights(file, tensors, {"name": "Größe"})
    assert pack_weights(file).read_bytes() == content


@pytest.mark.parametrize("content", [b"", b"xz", b"\xfd7zXZ\x00 cut off"])
def test_a_packed_file_that_is_none_is_named(tmp_path, content):
    file = tmp_path / "w.safetensors.xz"
    file.write_bytes(content)
    with pytest.raises(RunError, match=r"w\.safetensors\.xz: not a readable safetensors file"):
        read_weights(file)
    file.unlink()
    with pytest.raises(RunError, match=r"w\.safetensors\.xz: no such weights file"):
        read_weights(file)


def test_a_packed_file_that_was_cut_or_holds_something_else_is_named(tmp_path):
    save_weights(tmp_path / "w.safetensors", nn.Linear(50, 50), {})
    packed = pack_weights(tmp_path / "w.safetensors")
    packed.write_bytes(packed.read_bytes()[:-40])
    with pytest.raises(RunError, match=r"w\.safetensors\.xz: not a readable safetensors file"):
        read_weights(packed)
    packed.write_bytes(lzma.compress(b"no weights at all"))
    with pytest.raises(RunError, match=r"w\.safetensors\.xz: not a readable safetensors file"):
        read_weights(packed)


def test_a_file_is_written_into_a_folder_that_is_not_there_yet(tmp_path):
    write_json(tmp_path / "new" / "reports" / "found.json", {"rate": 1})
    assert read_json(tmp_path / "new" / "reports" / "found.json") == {"rate": 1}
