"""The 3D U-Net: the paper's sizes, symmetry in all three axes, gradients, layouts and refused settings."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention import BasicTransformerBlock
from torch.utils.flop_counter import FlopCounterMode

from vader.diffusion.denoising import build_denoiser
from vader.diffusion.unet3d import (
    ContextTransformer,
    Conv3d,
    GroupNorm,
    ResidualBlock,
    SelfAttention,
    TransformerBlock,
    UNet3D,
    attend,
    downsample,
    upsample,
)
from vader.settings.checks import ConfigError
from vader.settings.diffusion import UNetConfig
from vader.settings.profiles import experiment

SMALL = UNetConfig(channels=16, depth=1, channel_mult=(1, 2), channels_per_head=8, dropout=0.0)
TEXT = UNetConfig(
    channels=16,
    depth=1,
    channel_mult=(1, 2),
    channels_per_head=8,
    dropout=0.0,
    cross_attention_resolutions=(8, 4),
    context_dim=6,
    transformer_depth=2,
)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def trained(config: UNetConfig = SMALL, channels: int = 4, resolution: int = 8) -> UNet3D:
    """A network without zeros in it, as training would leave it."""
    torch.manual_seed(0)
    network = UNet3D(config, channels, resolution)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network.eval()


# --------------------------------------------------------------------------------------------------- the paper's size


@pytest.mark.parametrize(
    ("config", "parameters", "flops"),
    [(UNetConfig(), 216e6, 97.3e9), (UNetConfig(channels=192, depth=3), 620e6, 275e9)],
    ids=["chairs", "large"],
)
def test_table_5_sizes(config, parameters, flops):
    with torch.device("meta"):
        network = UNet3D(config, 256, 8).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            output = network(torch.empty(1, 256, 8, 8, 8), torch.empty(1))
    assert output.shape == (1, 256, 8, 8, 8)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(parameters, rel=0.01)
    assert counter.get_total_flops() == pytest.approx(flops, rel=0.01)


def test_blocks_attention_and_heads_are_where_adm_has_them():
    network = UNet3D(UNetConfig(channels=32, depth=2, channel_mult=(2, 4), attention_resolutions=(4,)), 8, 8)
    assert len(network.encoder) == 2 + 1 + 2
    assert [len(stage) for stage in network.decoder] == [3 + 1, 3]
    attention = [b for b in network.modules() if isinstance(b, ResidualBlock) and b.self_attention is not None]
    assert len(attention) == 2 + 1 + 3  # the lower level's encoder and decoder, and the first block of the centre
    assert {b.self_attention.heads for b in attention} == {128 // 64}
    assert {module.num_groups for module in network.modules() if isinstance(module, GroupNorm)} == {16, 32}


def test_cross_attention_follows_self_attention_at_its_resolutions():
    blocks = [b for b in UNet3D(TEXT, 4, 8).modules() if isinstance(b, ResidualBlock) and b.cross_attention]
    assert len(blocks) == 1 + 1 + 1 + 2 + 2  # every block but those that resample and the centre's second
    assert all(len(b.cross_attention.blocks) == 2 and b.self_attention is not None for b in blocks)


# -------------------------------------------------------------------------------------------------- three dimensions


def test_resampling_acts_on_all_three_axes():
    x = randn(2, 3, 4, 6, 8)
    down = downsample(x)
    assert down.shape == (2, 3, 2, 3, 4)
    for d, h, w in itertools.product(range(2), range(3), range(4)):
        box = x[:, :, 2 * d : 2 * d + 2, 2 * h : 2 * h + 2, 2 * w : 2 * w + 2]
        torch.testing.assert_close(down[:, :, d, h, w], box.mean(dim=(2, 3, 4)))
    up = upsample(x)
    assert up.shape == (2, 3, 8, 12, 16)
    for d, h, w in itertools.product(range(8), range(12), range(16)):
        assert torch.equal(up[:, :, d, h, w], x[:, :, d // 2, h // 2, w // 2])
    torch.testing.assert_close(downsample(up), x)


def symmetrize(network: UNet3D) -> None:
    """Average every 3x3x3 kernel over the 48 symmetries of the cube."""
    for module in network.modules():
        if isinstance(module, torch.nn.Conv3d):
            versions = [
                kernel.flip(flips)
                for axes in itertools.permutations((2, 3, 4))
                for kernel in [module.weight.data.permute(0, 1, *axes)]
                for n in range(4)
                for flips in itertools.combinations((2, 3, 4), n)
            ]
            assert len(versions) == 48
            module.weight.data = torch.stack(versions).mean(0)


@pytest.mark.parametrize("axes", [(3, 2, 4), (4, 3, 2), (3, 4, 2)])
def test_no_axis_is_special(axes):
    network = trained(TEXT).double()
    symmetrize(network)
    x, c_noise, context = randn(2, 4, 8, 8, 8).double(), torch.tensor([-1.0, 0.4]), randn(2, 5, 6).double()
    turned = network(x.permute(0, 1, *axes).flip(2), c_noise, context)
    torch.testing.assert_close(turned, network(x, c_noise, context).permute(0, 1, *axes).flip(2), rtol=1e-9, atol=1e-9)


# ------------------------------------------------------------------------------------------------------ the layers


@pytest.mark.parametrize("channels", [3, 6, 16, 64, 160])
@pytest.mark.parametrize("film", [False, True])
def test_group_norm_in_channels_last_is_pytorchs(channels, film):
    norm = GroupNorm(channels)
    assert channels % norm.num_groups == 0 and norm.num_groups <= 32
    with torch.no_grad():
        norm.weight.add_(randn(channels, seed=1)), norm.bias.add_(randn(channels, seed=2))
    norm = norm.double()
    scale, shift = (randn(2, channels, seed=s).double() for s in (3, 4)) if film else (None, None)
    results = []
    for layout in (torch.contiguous_format, torch.channels_last_3d):
        x = (5 + 3 * randn(2, channels, 2, 3, 4).double()).contiguous(memory_format=layout).requires_grad_()
        y = norm(x, scale, shift)
        expected = F.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)
        if film:
            expected = expected * (1 + scale[:, :, None, None, None]) + shift[:, :, None, None, None]
        torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-9)
        target = randn(*x.shape, seed=9).double()
        results.append(torch.autograd.grad((y * target).sum(), [x, norm.weight, norm.bias]))
    for first, second in zip(*results, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-9)


def test_group_norm_survives_a_constant_volume():
    x = torch.full((1, 64, 8, 8, 8), 1234.5).contiguous(memory_format=torch.channels_last_3d)
    assert GroupNorm(64)(x).isfinite().all()


@pytest.mark.parametrize("heads", [1, 4])
def test_attention_is_the_weighted_mean_of_a_loop_and_of_pytorch(heads):
    q, k, v = randn(2, 5, 8), randn(2, 7, 8, seed=1), randn(2, 7, 8, seed=2)
    found = attend(q, k, v, heads)
    width = 8 // heads
    for b, i, head in itertools.product(range(2), range(5), range(heads)):
        part = slice(head * width, (head + 1) * width)
        weights = torch.stack([(q[b, i, part] @ k[b, j, part] / width**0.5).exp() for j in range(7)])
        torch.testing.assert_close(found[b, i, part], (weights[:, None] * v[b, :, part]).sum(0) / weights.sum())
    split = [t.unflatten(-1, (heads, width)).transpose(1, 2) for t in (q, k, v)]
    torch.testing.assert_close(found, F.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2))


def test_transformer_block_is_that_of_latent_diffusion():
    torch.manual_seed(0)
    ours = TransformerBlock(16, channels_per_head=8, context_dim=6).eval()
    theirs = BasicTransformerBlock(16, 2, 8, cross_attention_dim=6, activation_fn="geglu").eval()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    state = {f"norm{i}.{n}": p for i in (1, 2, 3) for n, p in getattr(ours, f"norm{i}").state_dict().items()}
    for name, attention in (("attn1", ours.self_attention), ("attn2", ours.cross_attention)):
        state[f"{name}.to_q.weight"] = attention.q.weight
        state[f"{name}.to_k.weight"], state[f"{name}.to_v.weight"] = attention.kv.weight.chunk(2)
        state[f"{name}.to_out.0.weight"], state[f"{name}.to_out.0.bias"] = attention.out.weight, attention.out.bias
    for name, layer in (("ff.net.0.proj", ours.geglu), ("ff.net.2", ours.out)):
        state[f"{name}.weight"], state[f"{name}.bias"] = layer.weight, layer.bias
    theirs.load_state_dict(state)  # strict: nothing is missing, nothing is left over
    tokens, context = randn(2, 9, 16), randn(2, 5, 6, seed=1)
    expected = theirs(tokens, encoder_hidden_states=context)
    torch.testing.assert_close(ours(tokens, context), expected, rtol=1e-4, atol=1e-5)


def test_film_scales_and_shifts_each_object_by_its_own_embedding():
    torch.manual_seed(0)
    block = ResidualBlock(8, 8, SMALL).eval()
    with torch.no_grad():
        block.conv1.weight.normal_()
    x, embedding = randn(2, 8, 4, 4, 4), randn(2, 64, seed=1)
    h = F.group_norm(block.conv0(F.silu(block.norm0(x))), block.norm1.num_groups)
    scale, shift = block.film(embedding)[:, :, None, None, None].split(8, dim=1)
    expected = x + block.conv1(F.silu(h * (1 + scale) + shift))
    for given in ((embedding, None), (embedding, None, block.film(embedding)), (None, None, block.film(embedding))):
        torch.testing.assert_close(block(x, *given), expected, rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------------------------------- initialisation, training


def test_untrained_network_outputs_zero_and_its_residual_branches_are_identities():
    torch.manual_seed(0)
    x = randn(2, 16, 4, 4, 4)
    assert UNet3D(TEXT, 4, 8)(randn(2, 4, 8, 8, 8), torch.zeros(2), randn(2, 3, 6)).abs().max() == 0
    assert torch.equal(SelfAttention(16, 8)(x), x)
    assert torch.equal(ContextTransformer(16, 8, 6, depth=1)(x, randn(2, 3, 6)), x)
    assert torch.equal(ResidualBlock(16, 16, SMALL, self_attention=True)(x, randn(2, 64), None), x)
    block = ResidualBlock(16, 16, SMALL, downsample)
    assert torch.equal(block(x, randn(2, 64), None), downsample(x))


def test_gradients_reach_every_parameter():
    torch.manual_seed(0)
    network = UNet3D(TEXT, 4, 8)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    x, c_noise, context = randn(2, 4, 8, 8, 8), torch.tensor([-0.5, 0.5]), randn(2, 3, 6)
    for _ in range(3):  # one step opens the zero-initialised output, the next the zero-initialised branches
        optimizer.zero_grad()
        (network(x, c_noise, context) - randn(*x.shape, seed=1)).square().sum().backward()
        optimizer.step()
    silent = [name for name, p in network.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert not silent


def test_dropout_acts_in_training_only():
    config = UNetConfig(channels=16, depth=1, channel_mult=(1, 2), channels_per_head=8, dropout=0.5)
    network, x = trained(config), randn(1, 4, 8, 8, 8)
    assert torch.equal(network(x, torch.zeros(1)), network(x, torch.zeros(1)))
    network.train()
    assert not torch.allclose(network(x, torch.zeros(1)), network(x, torch.zeros(1)))


# ----------------------------------------------------------------------------------------------------------- forward


def test_objects_do_not_see_each_other_and_noise_and_context_matter():
    network = trained(TEXT)
    x, c_noise, context = randn(3, 4, 8, 8, 8), torch.tensor([-1.0, 0.0, 1.0]), randn(3, 5, 6)
    together = network(x, c_noise, context)
    for i in range(3):
        alone = network(x[i : i + 1], c_noise[i : i + 1], context[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-4)
    spread = together.std()
    assert (network(x, c_noise + 0.5, context) - together).abs().max() > 0.01 * spread
    assert (network(x, c_noise, context.flip(-1)) - together).abs().max() > 0.01 * spread
    shuffled = network(x, c_noise, context[:, torch.tensor([3, 1, 4, 0, 2])])  # a set of tokens, not a sequence
    torch.testing.assert_close(shuffled, together, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("resolution", "mult"), [(4, (1,)), (8, (2, 1)), (16, (1, 1, 2))])
def test_any_resolution_and_number_of_levels(resolution, mult):
    attention = (resolution >> (len(mult) - 1),)
    config = UNetConfig(channels=8, depth=1, channel_mult=mult, attention_resolutions=attention, channels_per_head=8)
    x = randn(1, 3, *3 * [resolution])
    assert UNet3D(config, 3, resolution)(x, torch.zeros(1)).shape == x.shape


@pytest.mark.parametrize("tap", [4, 8, 16])
def test_every_latent_tap_has_a_denoiser(tap):
    """The ablation of Sec. 4.4: the resolutions of attention move with the latents, whose channels halve."""
    config = experiment("smoke", "procedural_chairs").replace(
        autodecoder=dict(resolution=32, latent_resolution=tap), unet=dict(attention_resolutions=(tap, tap // 2))
    )
    x = randn(1, *config.autodecoder.latent_shape)
    assert x.shape[1:] == (128 // tap, tap, tap, tap)
    assert build_denoiser(config)(x, torch.ones(1)).shape == x.shape


def test_memory_layout_and_precision_change_rounding_only():
    network = trained(TEXT)
    x, c_noise, context = randn(2, 4, 8, 8, 8), torch.tensor([-0.5, 0.5]), randn(2, 3, 6)
    expected = network(x, c_noise, context)
    network.to(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(network(x, c_noise, context), expected, rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = network(x, c_noise, context)
    low = network.to(torch.bfloat16)(x, c_noise, context)
    assert low.dtype == torch.bfloat16
    for rounded in (mixed, low):
        assert (rounded.float() - expected).norm() < 0.05 * expected.norm()


# ------------------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(attention_resolutions=(16, 8)), r"attention_resolutions has 16\^3, which never occurs: .* \[8, 4\]"),
        (dict(attention_resolutions=(2,)), r"attention_resolutions has 2\^3, which never occurs"),
        (
            dict(cross_attention_resolutions=(6,), context_dim=3),
            r"cross_attention_resolutions has 6\^3, which never occurs",
        ),
        (dict(channel_mult=(1, 1, 1, 1, 1)), r"resolution 8 cannot be halved 4 times"),
    ],
)
def test_impossible_configurations(changes, message):
    settings = dict(channels=16, depth=1, channel_mult=(1, 2), attention_resolutions=(8,), channels_per_head=8)
    with pytest.raises(ConfigError, match=message):
        UNet3D(UNetConfig(**(settings | changes)), 4, 8)


def test_inputs_that_do_not_fit():
    plain, text = UNet3D(SMALL, 4, 8), UNet3D(TEXT, 4, 8)
    x, c_noise, context = randn(2, 4, 8, 8, 8), torch.zeros(2), randn(2, 3, 6)
    with pytest.raises(ConfigError, match=r"unconditional \(context_dim 0\), but a context was given"):
        plain(x, c_noise, context)
    with pytest.raises(ConfigError, match=r"conditional: expected a context of shape \(2, l, 6\), got none"):
        text(x, c_noise)
    for wrong in (context[:1], context[..., :5], context[:, 0]):
        with pytest.raises(ConfigError, match=r"context has shape .*, expected \(2, l, 6\)"):
            text(x, c_noise, wrong)
    with pytest.raises(ConfigError, match=r"x has shape \(2, 4, 8, 8, 4\), expected"):
        plain(x[..., :4], c_noise)
    with pytest.raises(ConfigError, match=r"c_noise has shape \(3,\), expected \(2,\)"):
        plain(x, torch.zeros(3))


@pytest.mark.parametrize("r", [1, 2, 3, 4])
def test_gradients_in_bfloat16_are_those_in_float32(r):
    """oneDNN's gradient for the weights is wrong at 2^3: with nn.Conv3d here this fails there."""
    for seed in range(8):
        torch.manual_seed(seed)
        convolution = Conv3d(32, 32, 3, padding=1)
        x, g = torch.randn(2, 8, 32, r, r, r).unbind()
        gradients = []
        for enabled in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                out = convolution(x)
            assert out.dtype == (torch.bfloat16 if enabled else torch.float32)
            gradients.append(torch.autograd.grad(out, convolution.weight, g.to(out.dtype))[0])
        error = (gradients[1] - gradients[0]).norm() / gradients[0].norm()
        assert error < 0.02, (seed, error)
