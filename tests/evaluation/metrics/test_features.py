"""Feature networks against the packages their weights come from, and what extraction refuses."""

from __future__ import annotations

import sys

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from vader.evaluation.metrics import MetricError, features
from vader.store import weights


@pytest.fixture(autouse=True)
def fresh_networks():
    features.feature_network.cache_clear()
    yield
    features.feature_network.cache_clear()


def random_images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def test_efficientnet_is_its_packages():
    """The definition in the weights' sister package, fed by hand, gives the same features and a right answer."""
    package = pytest.importorskip("efficientnet_lite_pytorch")
    resolved = weights.resolve("efficientnet-lite0")
    reference = package.EfficientNet.from_name("efficientnet-lite0")
    reference.load_state_dict(weights.load_state(resolved))
    images = random_images(2, 3, 224, 224)
    with torch.no_grad():
        expected = reference.eval().extract_features((images.float() - 127) / 128).mean((2, 3))
    torch.testing.assert_close(features.feature_network("efficientnet-lite0")(images), expected, rtol=1e-4, atol=1e-4)


def test_efficientnet_knows_what_it_sees():
    """Layers, resize and normalisation together name a cat and a cup of espresso at a tenth of their size."""
    data = pytest.importorskip("skimage.data")
    classifier = weights.load_state(weights.resolve("efficientnet-lite0"))
    names = torchvision.models.AlexNet_Weights.IMAGENET1K_V1.meta["categories"]
    network = features.feature_network("efficientnet-lite0")
    for image, expected in ((data.chelsea(), {"tabby", "tiger cat", "Egyptian cat"}), (data.coffee(), {"espresso"})):
        square = torch.from_numpy(image.copy()).movedim(-1, 0)[None, :, :, 60:-60]
        small = torch.nn.functional.interpolate(square.float(), (96, 96), mode="bilinear", antialias=True)
        pooled = network(small.round().clamp(0, 255).to(torch.uint8))
        scores = pooled @ classifier["_fc.weight"].T + classifier["_fc.bias"]
        assert names[scores.argmax()] in expected


def test_efficientnets_colours_are_scaled_as_its_weights_were_trained():
    """Known pictures get more of their class from (x - 127) / 128 than from ImageNet's mean and deviation.

    The package's example has the latter, as that of the network without "Lite" does.
    """
    data = pytest.importorskip("skimage.data")
    classifier = weights.load_state(weights.resolve("efficientnet-lite0"))
    names = torchvision.models.AlexNet_Weights.IMAGENET1K_V1.meta["categories"]
    network = features.feature_network("efficientnet-lite0")
    mean, std = (255 * torch.tensor(x).view(3, 1, 1) for x in (weights.IMAGENET_MEAN, weights.IMAGENET_STD))
    for name, label in (("coffee", "espresso"), ("chelsea", "Egyptian cat"), ("rocket", "missile")):
        image = torch.from_numpy(getattr(data, name)().copy()).movedim(-1, 0)[None].float()
        height, width = image.shape[2:]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        square = features._resize(image[:, :, top : top + side, left : left + side], 224)
        found = []
        for pixels in (square, (square - mean) / std * 128 + 127):  # the network takes 127 away, and divides by 128
            scores = network(pixels) @ classifier["_fc.weight"].T + classifier["_fc.bias"]
            found.append(scores.softmax(1)[0, names.index(label)].item())
        assert found[0] > found[1] > 0.1, f"{label}: {found}"


def test_vgg16_is_torchvisions(tmp_path, monkeypatch):
    torch.manual_seed(0)
    state = {k: 0.04 * torch.randn_like(v) for k, v in weights.vgg_layers("vgg16").state_dict().items()}
    save_file(state, tmp_path / "vgg16_features.safetensors")
    monkeypatch.setenv("VADER_WEIGHTS", str(tmp_path))
    reference = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"])
    reference.load_state_dict(state)
    images = random_images(2, 112, 112, 3)
    normalise = torchvision.transforms.Normalize(weights.IMAGENET_MEAN, weights.IMAGENET_STD)
    with torch.no_grad():
        expected = reference[:30](normalise(images.movedim(-1, 1) / 255)).mean((2, 3))
    torch.testing.assert_close(features.extract(images, "vgg16-relu5").values, expected, rtol=1e-4, atol=1e-5)


def test_objects_corners_and_batches():
    images = random_images(3, 2, 40, 48, 3)
    images[:, :, [0, 0, -1, -1], [0, -1, 0, -1]] = torch.tensor([0, 51, 255], dtype=torch.uint8)
    a = features.extract(images, batch_size=4)
    assert a.values.shape == (6, 1280) and a.values.dtype == torch.float32 and len(a) == 6
    assert a.objects.tolist() == [0, 0, 1, 1, 2, 2] and a.num_objects == 3
    assert a.resolution == (40, 48) and a.corner == pytest.approx((0, 0.2, 1))
    b = features.extract(images.flatten(0, 1), objects=torch.tensor([7, 7, 8, 8, 9, 9]), batch_size=1)
    assert b.objects.tolist() == a.objects.tolist()
    torch.testing.assert_close(a.values, b.values, rtol=1e-4, atol=1e-4)


def test_bits_do_not_depend_on_threads():
    images = random_images(5, 32, 32, 3)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(features.extract(images).values)
            assert torch.get_num_threads() == threads  # as the caller had it
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


def test_floats_are_rounded_as_image_files_are():
    images = random_images(2, 32, 32, 3)
    noise = 0.4 * (torch.rand(images.shape, generator=torch.Generator().manual_seed(1)) * 2 - 1)
    floats = ((images + noise) / 255).clamp(0, 1)
    assert torch.equal(features.to_uint8(floats), images)
    assert torch.equal(features.extract(floats).values, features.extract(images).values)
    assert features.to_uint8(torch.tensor([-3.0, 7.0])).tolist() == [0, 255]


def broken(value: float) -> torch.Tensor:
    images = torch.zeros(3, 32, 32, 3)
    images[1, 4, 5, 2] = value
    return images


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (broken(torch.nan), "image 1 holds NaN"),
        (broken(torch.inf), "image 1 holds NaN or infinity"),
        (broken(255.0), r"colours range over \[0, 255\]"),
        (torch.zeros(3, 3, 32, 32), "expected"),
        (torch.zeros(0, 32, 32, 3), "none empty"),
        (torch.zeros(3, 32, 32, 3, dtype=torch.int64), "images are torch.int64"),
    ],
)
def test_bad_images_are_refused_before_any_network_is_opened(images, message, monkeypatch):
    monkeypatch.setattr(features, "feature_network", lambda name: pytest.fail("opened a network first"))
    with pytest.raises(MetricError, match=message):
        features.extract(images)


def test_objects_must_fit():
    with pytest.raises(MetricError, match=r"objects has shape \(2,\), expected \(3,\)"):
        features.extract(random_images(3, 32, 32, 3), objects=torch.zeros(2))
    with pytest.raises(MetricError, match="leave out"):
        features.extract(random_images(3, 2, 32, 32, 3), objects=torch.zeros(6))


def test_names_and_independence():
    assert features.metric_names("inception-v3") == ("fid", "kid")
    for network in ("efficientnet-lite0", "vgg16-relu5"):
        assert features.metric_names(network) == ("fd", "kd")
    with pytest.raises(MetricError, match="cannot judge a model trained with a vgg19 loss"):
        features.check_independent("vgg16-relu5", "vgg19")
    features.check_independent("vgg16-relu5", "none")
    features.check_independent("efficientnet-lite0", "vgg16")
    with pytest.raises(MetricError, match="no features are called 'resnet'"):
        features.feature_network("resnet")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda s: s.pop("_blocks.3._bn1.bias"), "_blocks.3._bn1.bias is missing"),
        (lambda s: s.update({"_se.weight": torch.zeros(3)}), "_se.weight is unexpected"),
        (lambda s: s.update({"_bn0.weight": torch.zeros(3)}), r"_bn0.weight is \(3,\), expected \(32,\)"),
    ],
)
def test_weights_of_another_network(change, expected, tmp_path, monkeypatch):
    state = weights.load_state(weights.resolve("efficientnet-lite0"))
    state = {name: tensor.contiguous() for name, tensor in state.items()}
    change(state)
    save_file(state, tmp_path / "efficientnet_lite0.safetensors")
    monkeypatch.setenv("VADER_WEIGHTS", str(tmp_path))
    with pytest.raises(weights.WeightsError, match=f"efficientnet_lite0.safetensors: {expected}"):
        features.feature_network("efficientnet-lite0")


def test_inception_without_weights_is_an_error(tmp_path, monkeypatch):
    def refuse(url):
        raise OSError("no network in this test")

    monkeypatch.setattr(weights, "_download", refuse)
    monkeypatch.setenv("VADER_WEIGHTS", str(tmp_path))
    with pytest.raises(weights.WeightsError, match="inception-v3.*not found"):
        features.feature_network("inception-v3")


def test_inception_is_torch_fidelitys(tmp_path, monkeypatch):
    """A randomly initialised InceptionV3 in the resolver's place gives torch-fidelity's 2048 features of it."""
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    monkeypatch.setattr(module, "load_state_dict_from_url", lambda *_, **__: pytest.fail("downloads"))
    torch.manual_seed(0)
    monkeypatch.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
    monkeypatch.setattr(torch, "load", lambda *_, **__: {})
    reference = module.FeatureExtractorInceptionV3("x", ["2048"], feature_extractor_weights_path="none")
    monkeypatch.undo()
    torch.save(reference.state_dict(), tmp_path / "weights-inception-2015-12-05-6726825d.pth")
    monkeypatch.setenv("VADER_WEIGHTS", str(tmp_path))
    images = random_images(2, 32, 32, 3)
    got = features.extract(images, "inception-v3")
    assert got.values.shape == (2, 2048)
    torch.testing.assert_close(got.values, reference(images.movedim(-1, 1))[0], rtol=1e-4, atol=1e-5)


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ImportError, match=r"needs torch_fidelity: pip install 'vader\[eval\]'"):
        features.register_extractors()
