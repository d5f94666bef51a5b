"""The decoder: equivalent forms of its blocks, shapes and the split into G1 and G2, Table 5's full size."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from vader.autodecoder.decoder import Decoder, SameBlock, SelfAttention, UpBlock, UpConv3d, attend, upsample
from vader.settings.autodecoder import AutodecoderConfig
from vader.settings.table5 import PAPER

SMALL = AutodecoderConfig(
    embedding_dim=6, max_channels=16, resolution=16, depth=2, attention_resolutions=(8,), latent_resolution=8
)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_up_convolution_is_upsampling_then_convolution():
    conv = UpConv3d(3, 5).double()
    x = torch.randn(2, 3, 4, 4, 4, dtype=torch.float64, requires_grad=True)
    expected = F.conv3d(upsample(x), conv.weight, conv.bias, padding=1)
    assert torch.allclose(conv(x), expected, atol=1e-12)
    weights = torch.randn_like(expected)
    ours = torch.autograd.grad((conv(x) * weights).sum(), [x, conv.weight])
    theirs = torch.autograd.grad((expected * weights).sum(), [x, conv.weight])
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-10)


def test_up_block_equals_the_block_that_upsamples_first():
    block = UpBlock(4, 3).double().train()
    x = torch.randn(2, 4, 4, 4, 4, dtype=torch.float64)
    big = upsample(x)
    h = F.batch_norm(F.relu(big), None, None, block.norm.weight, block.norm.bias, training=True)
    h = F.conv3d(h, block.conv.weight, block.conv.bias, padding=1)
    expected = block.skip(big) + block.unit(h)
    assert torch.allclose(block(x), expected, atol=1e-10)


def test_self_attention_against_a_loop_over_cells():
    attention = SelfAttention(4).double().eval()
    x = torch.randn(1, 4, 2, 2, 2, dtype=torch.float64)
    q, k, v = attention.qkv(attention.norm(x))[0].flatten(1).split(4)  # (c, cells)
    attended = torch.empty_like(v)
    for i in range(8):
        weights = torch.softmax(torch.stack([q[:, i] @ k[:, j] for j in range(8)]) / 4**0.5, dim=0)
        attended[:, i] = sum(weights[j] * v[:, j] for j in range(8))
    expected = x + attention.out(attended.view(1, 4, 2, 2, 2))
    assert torch.allclose(attention(x), expected, atol=1e-12)


def test_attention_in_bfloat16_is_that_of_doubles_rounded():
    exact = [torch.randn(2, 1, 64, 16, dtype=torch.float64).bfloat16().double().requires_grad_() for _ in range(3)]
    low = [x.detach().bfloat16().requires_grad_() for x in exact]
    above = torch.randn(2, 1, 64, 16)
    expected = F.scaled_dot_product_attention(*exact)
    expected.backward(above.double())
    ours = attend(*low)
    ours.backward(above.bfloat16())
    for got, wanted in zip([ours, *(x.grad for x in low)], [expected, *(x.grad for x in exact)], strict=True):
        assert ((got.double() - wanted).norm() / wanted.norm()) < 0.01


@pytest.mark.parametrize("latent", [4, 8])
def test_g_is_g2_after_g1_at_every_tap(latent):
    config = dataclasses.replace(SMALL, latent_resolution=latent)
    decoder = Decoder(config).eval()
    z = torch.randn(3, 6)
    features = decoder.g1(z)
    assert tuple(features.shape[1:]) == config.latent_shape
    assert torch.equal(decoder.g2(features), decoder(z))
    assert decoder(z).shape == (3, 4, 16, 16, 16)


def test_the_latent_follows_the_attention_of_its_resolution():
    decoder = Decoder(SMALL)
    assert isinstance(decoder.stages[0][-1], SelfAttention)
    assert decoder.num_g1_stages == 1


@pytest.mark.parametrize(("counts_up_block", "expected"), [(True, 2), (False, 3)])
def test_both_readings_of_depth(counts_up_block, expected):
    decoder = Decoder(dataclasses.replace(SMALL, depth_counts_up_block=counts_up_block, attention_resolutions=()))
    assert {len(stage) for stage in decoder.stages} == {expected}


@pytest.mark.parametrize(
    ("resolution", "depth", "embedding_dim", "tap", "lbs", "attention"),
    [
        (64, 1, 64, 4, 0, ()),
        (64, 2, 256, 8, 10, (8,)),
        (64, 3, 512, 16, 0, (16,)),
        (64, 4, 1024, 8, 0, (8, 16)),
        (128, 1, 1024, 16, 10, (8, 16)),
        (128, 2, 64, 4, 0, (16,)),
    ],
)
def test_every_size_of_the_ablations_is_a_configuration(resolution, depth, embedding_dim, tap, lbs, attention):
    config = AutodecoderConfig(
        embedding_dim=embedding_dim, max_channels=32, resolution=resolution, depth=depth, lbs_channels=lbs,
        attention_resolutions=attention, latent_resolution=tap,
    )  # fmt: skip
    decoder = Decoder(config).eval()
    for r, stage in zip(config.stage_resolutions, decoder.stages, strict=True):
        kinds = [UpBlock] + [SameBlock] * (depth - 1) + [SelfAttention] * (r in attention)
        assert [type(block) for block in stage] == kinds
    with torch.no_grad():
        features = decoder.g1(torch.randn(1, embedding_dim))
        volume = decoder.g2(features)
        assert tuple(features.shape) == (1, 32 * 4 // tap, tap, tap, tap)
        assert tuple(volume.shape) == (1, 1 + 3 + lbs, resolution, resolution, resolution)
        assert torch.isfinite(volume).all() and volume.std() > 0


@pytest.mark.parametrize("resolution", [8, 16])
def test_attention_lets_far_cells_see_each_other(resolution):
    attention = SelfAttention(2).eval()
    x = torch.randn(1, 2, resolution, resolution, resolution)
    changed = x.clone()
    changed[..., 0, 0, 0] += 5
    with torch.no_grad():
        moved = (attention(changed) - attention(x)).abs().sum(1)[0]
    assert moved[-1, -1, -1] > 0


def test_outputs_are_a_density_a_colour_and_skinning_logits():
    config = dataclasses.replace(SMALL, lbs_channels=10, density_scale=3.0, colour_activation="sigmoid")
    decoder = Decoder(config).eval()
    volume = decoder(torch.randn(2, 6))
    assert volume.shape[1] == 1 + 3 + 10
    assert (volume[:, 0] >= 0).all() and (volume[:, 0] > 0).any()
    assert ((volume[:, 1:4] > 0) & (volume[:, 1:4] < 1)).all()
    assert (volume[:, 4:] < 0).any()
    softplus = Decoder(dataclasses.replace(config, density_activation="softplus")).eval()
    softplus.load_state_dict(decoder.state_dict())
    assert (softplus(torch.randn(2, 6))[:, 0] > 0).all()


def test_skinning_logits_have_a_scale_and_shares_from_coarser_features():
    """Neither touches density and colour, and the shares start at the latent volume, which is all that G2 is given."""
    plain = dataclasses.replace(SMALL, resolution=32, latent_resolution=8, lbs_channels=3)
    summed = dataclasses.replace(plain, lbs_skips=True, lbs_scale=5.0)
    one, many = Decoder(plain).eval(), Decoder(summed).eval()
    assert [head.in_channels for head in many.lbs_heads] == [plain.channels_at(8), plain.channels_at(16)]
    many.load_state_dict(one.state_dict() | {k: v for k, v in many.state_dict().items() if k.startswith("lbs_heads")})
    features = one.g1(torch.randn(2, 6))
    with torch.no_grad():
        before, after = one.g2(features), many.g2(features)
        torch.testing.assert_close(after[:, :4], before[:, :4])
        assert (after[:, 4:] - 5 * before[:, 4:]).abs().max() > 0.1
        for head in many.lbs_heads:
            head.weight.zero_(), head.bias.zero_()
        torch.testing.assert_close(many.g2(features)[:, 4:], 5 * before[:, 4:])
        many.head.weight.zero_(), many.head.bias.zero_()
        many.lbs_heads[0].bias.copy_(torch.tensor([1.0, 2.0, 3.0]))
        expected = 5 * torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1, 1).expand(2, 3, 32, 32, 32)
        torch.testing.assert_close(many.g2(features)[:, 4:], expected)
    many.g2(features)[:, 4:].square().sum().backward()
    assert all(head.weight.grad.abs().sum() > 0 for head in many.lbs_heads)


def test_a_new_decoder_starts_as_thin_fog():
    """The initial density is the activation of the bias and a small spread, not an opaque block."""
    config = dataclasses.replace(SMALL, density_scale=8.0, density_bias=0.05)
    decoder = Decoder(config).eval()
    torch.nn.init.zeros_(decoder.head.weight)
    assert torch.allclose(decoder(torch.randn(1, 6))[:, 0], torch.tensor(0.4))


def test_density_noise_is_noise_on_the_raw_density_only():
    decoder = Decoder(SMALL).eval()
    features = decoder.g1(torch.randn(1, 6))
    quiet, noisy = decoder.g2(features), decoder.g2(features, density_noise=0.5)
    assert torch.equal(quiet[:, 1:], noisy[:, 1:])
    assert not torch.equal(quiet[:, 0], noisy[:, 0])


def test_every_parameter_gets_a_gradient():
    decoder = Decoder(dataclasses.replace(SMALL, density_bias=1.0)).train()
    decoder(torch.randn(2, 6)).square().mean().backward()
    still = [name for name, p in decoder.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # a bias before batch norm, and the key bias of a softmax, cannot matter
    assert all("qkv.bias" in name or "bias" in name for name in still), still


def test_the_chairs_column_constructs_and_runs_at_full_size():
    decoder = Decoder(PAPER["photoshape_chairs"].autodecoder).eval()
    parameters = sum(p.numel() for p in decoder.parameters())
    assert parameters == pytest.approx(55.26e6, rel=0.01)
    with torch.no_grad():
        volume = decoder(torch.randn(1, 1024))
    assert volume.shape == (1, 4, 64, 64, 64)
    assert torch.isfinite(volume).all()


@pytest.mark.parametrize("name", PAPER)
def test_every_column_of_table_5_constructs(name):
    config = PAPER[name].autodecoder
    with torch.device("meta"):
        decoder = Decoder(config).eval()
        volume = decoder(torch.empty(1, 1024))
    s = config.resolution
    assert tuple(volume.shape) == (1, 4 + config.lbs_channels, s, s, s)
