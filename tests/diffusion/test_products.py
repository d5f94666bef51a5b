"""Convolutions as matrix products: the index table, the product, the choice between both, and the network with them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vader.diffusion.edm import Denoiser
from vader.diffusion.inference import for_inference, how_it_runs
from vader.diffusion.products import MeasuredConv3d, choices, neighbours, product_conv3d
from vader.diffusion.sampling import sample_objects
from vader.diffusion.unet3d import UNet3D
from vader.settings.checks import ConfigError
from vader.settings.diffusion import SamplerConfig, UNetConfig

SIZES = [(4, 4, 4), (2, 3, 5), (1, 1, 1), (1, 6, 2), (8, 8, 8)]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("size", SIZES)
def test_the_table_of_neighbours_against_a_loop(size):
    d, h, w = size
    table = neighbours(size)
    assert table.shape == (d * h * w, 27)
    for cell, row in enumerate(table.tolist()):
        z, y, x = cell // (h * w), cell // w % h, cell % w
        for tap, found in enumerate(row):
            k, j, i = z + tap // 9 - 1, y + tap // 3 % 3 - 1, x + tap % 3 - 1
            inside = 0 <= k < d and 0 <= j < h and 0 <= i < w
            assert found == ((k * h + j) * w + i if inside else d * h * w)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("bias", [True, False])
def test_a_product_is_the_convolution(size, layout, bias):
    conv = nn.Conv3d(3, 5, 3, padding=1, bias=bias).double().to(memory_format=layout)
    x = torch.randn(2, 3, *size, dtype=torch.float64).contiguous(memory_format=layout)
    ours, theirs = product_conv3d(x, conv.weight, conv.bias), F.conv3d(x, conv.weight, conv.bias, padding=1)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    assert ours.is_contiguous(memory_format=torch.channels_last_3d)
    low = product_conv3d(x.bfloat16(), conv.weight.bfloat16(), None if conv.bias is None else conv.bias.bfloat16())
    assert ((low.double() - theirs).norm() / theirs.norm()) < 0.01


def test_the_faster_one_is_taken_and_measured_once_for_a_shape():
    measured = []
    conv = nn.Conv3d(2, 2, 3, padding=1).requires_grad_(False)

    def measure(run, x):
        name = "convolution" if run is conv else "product"
        measured.append((name, tuple(x.shape)))
        return {"convolution": x.shape[0], "product": 2.5}[name]

    either = MeasuredConv3d(conv, measure)
    for batch in (2, 3, 2, 3):
        x = torch.randn(batch, 2, 4, 4, 4)
        torch.testing.assert_close(either(x), conv(x), rtol=1e-5, atol=1e-5)
    assert [shape for shape, _ in either.chosen] == [(2, 2, 4, 4, 4), (3, 2, 4, 4, 4)]
    assert list(either.chosen.values()) == ["convolution", "product"] and len(measured) == 4
    assert either(torch.randn(0, 2, 4, 4, 4)).shape == (0, 2, 4, 4, 4)  # nothing to measure with
    either(torch.randn(9, 2, 8, 8, 8))  # too many rows to try
    assert len(measured) == 4 and choices(either) == {
        (0, "convolution"): 1, (2, "convolution"): 1, (3, "product"): 1, (9, "convolution"): 1
    }  # fmt: skip


def small_denoiser() -> Denoiser:
    config = UNetConfig(
        channels=8, depth=1, channel_mult=(1, 2), attention_resolutions=(2,), channels_per_head=8, dropout=0.0
    )
    denoiser = Denoiser(UNet3D(config, 4, 4))
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.normal_(std=0.2)
    return denoiser


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.bfloat16, 0.05)])
def test_samples_of_a_network_of_products_are_those_of_convolutions(dtype, tolerance):
    denoiser, config = small_denoiser(), SamplerConfig(num_steps=4)
    plain, products = (for_inference(denoiser, dtype=dtype, products=p) for p in (False, True))
    for module in products.network.modules():
        if isinstance(module, MeasuredConv3d):
            module.measure = lambda run, x: float(isinstance(run, nn.Module))
    ours, theirs = (sample_objects(d, config, range(2), (4, 4, 4, 4), 0) for d in (products, plain))
    assert ((ours - theirs).norm() / theirs.norm()) < tolerance
    count = sum(isinstance(m, nn.Conv3d) and m.kernel_size == (3, 3, 3) for m in plain.network.modules())
    assert choices(products.network) == {(2, "product"): count} and count > 10
    assert how_it_runs(products) == "not compiled, convolutions as measured"


def test_measuring_ends_with_one_of_both_and_does_not_go_with_compiling():
    denoise = for_inference(small_denoiser(), dtype=torch.float32, products=True)
    sample_objects(denoise, SamplerConfig(num_steps=2), range(1), (4, 4, 4, 4), 0)
    assert {choice for _, choice in choices(denoise.network)} <= {"convolution", "product"}
    with pytest.raises(ConfigError, match="expected one of them"):
        for_inference(small_denoiser(), "cuda", compile=True, products=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_samples_with_measured_convolutions_on_cuda():
    denoiser, config = small_denoiser(), SamplerConfig(num_steps=4)
    found = [
        sample_objects(
            for_inference(denoiser, "cuda", torch.float32, products=p), config, range(2), (4, 4, 4, 4), 0, None, "cuda"
        )
        for p in (False, True)
    ]
    torch.testing.assert_close(*found, rtol=1e-2, atol=1e-2)
