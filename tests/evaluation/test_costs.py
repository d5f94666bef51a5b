"""Costs: measured on built modules, against sums by hand, a network as the text has it, and the paper's sizes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from vader.autodecoder.decoder import Decoder, UpBlock, upsample
from vader.diffusion.unet3d import UNet3D
from vader.evaluation import costs
from vader.settings.autodecoder import AutodecoderConfig
from vader.settings.profiles import experiment
from vader.settings.table5 import PAPER, PAPER_TEXT

SMALL = AutodecoderConfig(embedding_dim=6, max_channels=16, resolution=16, depth=3, attention_resolutions=(8, 16))


def by_hand(config: AutodecoderConfig) -> list[tuple[str, int, int]]:
    """(name, parameters, FLOP) of each stage of G as Sec. 3.1 and B.1 describe it."""
    c, r = config.max_channels, config.base_resolution
    rows = [("fully connected", (config.embedding_dim + 1) * c * r**3, 2 * config.embedding_dim * c * r**3)]
    while r < config.resolution:
        r, c_in, c = 2 * r, c, c // 2
        cells, units = r**3, 2 * (config.depth - 1) + 1  # 3x3x3 convolutions from c to c, each after a batch norm
        parameters = (2 * c_in + 27 * c_in * c + c) + (c_in * c + c) + units * (2 * c + 27 * c * c + c)
        products = cells * (27 * c_in * c + c_in * c + units * 27 * c * c)
        if r in config.attention_resolutions:
            parameters += 2 * c + 4 * (c * c + c)
            products += cells * 4 * c * c + 2 * cells**2 * c
        rows.append((f"{r}³", parameters, 2 * products))
    out = 4 + config.lbs_channels
    return [*rows, ("output", 2 * c + (c + 1) * out, 2 * c * out * config.resolution**3)]


@pytest.mark.parametrize("name", ["abo_tables", "photoshape_chairs", "celebv_text"])
def test_a_decoder_costs_what_the_text_says_stage_by_stage(name):
    config = PAPER[name]
    measured = [s for s in costs.stages(config) if s.part != "denoiser"]
    assert [(s.name, s.parameters, s.flops_written) for s in measured] == by_hand(config.autodecoder)
    assert [s.part for s in measured] == ["G1", "G1"] + ["G2"] * (len(measured) - 2)
    assert [s.attention for s in measured[1:3]] == ["SA", "SA"]
    assert measured[1].volume == "8³ × 256"


@pytest.mark.parametrize(
    ("name", "autodecoder", "forward", "denoiser", "evaluation"),
    [
        ("abo_tables", 45.9e6, 295e9, 216e6, 97.3e9),
        ("photoshape_chairs", 55.26e6, 256e9, 216e6, 97.3e9),
        ("objaverse", 55.26e6, 256e9, 620e6, 275e9),
    ],
)
def test_the_paper_sizes(name, autodecoder, forward, denoiser, evaluation):
    size, written = costs.parameters(PAPER[name]), costs.flops(PAPER[name], written=True)
    assert size["G1"] + size["G2"] == pytest.approx(autodecoder, rel=0.01)
    assert written["G1"] + written["G2"] == pytest.approx(forward, rel=0.01)
    assert size["denoiser"] == pytest.approx(denoiser, rel=0.01)
    assert written["denoiser"] == costs.flops(PAPER[name])["denoiser"] == pytest.approx(evaluation, rel=0.01)


def test_costs_as_written_are_those_of_a_network_that_upsamples_first(monkeypatch):
    def literal(block: UpBlock, x: torch.Tensor) -> torch.Tensor:
        x = upsample(x)
        h = F.conv3d(block.norm(block.activation(x)), block.conv.weight, block.conv.bias, padding=1)
        return block.skip(x) + block.unit(h)

    decoder = Decoder(SMALL).eval()
    stages = costs.decoder_stages(decoder)
    monkeypatch.setattr(UpBlock, "forward", literal)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        decoder.to("meta")(torch.empty(1, 6, device="meta"))
    assert sum(s.flops_written for s in stages) == counter.get_total_flops()
    assert sum(s.flops for s in stages) < counter.get_total_flops()


def test_measuring_leaves_a_live_model_as_it_was_and_counts_all_of_it():
    config = experiment("smoke", "procedural_chairs")
    decoder, network = Decoder(config.autodecoder).train(), UNet3D(config.unet, 16, 8).train()
    before = {k: v.clone() for k, v in (decoder.state_dict() | network.state_dict()).items()}
    stages = costs.decoder_stages(decoder) + costs.denoiser_stages(network)
    assert tuple(stages) == costs.stages(config)
    assert decoder.training and network.training and not any(m._forward_hooks for m in decoder.modules())
    for name, tensor in (decoder.state_dict() | network.state_dict()).items():
        assert torch.equal(tensor, before[name]), name
    everything = sum(p.numel() for p in [*decoder.parameters(), *network.parameters()])
    assert sum(s.parameters for s in stages) == everything
    sizes = costs.parameters(config)
    assert sizes["embedding"] == 8 * 16 and sum(sizes.values()) == everything + 8 * 16


def test_the_library_of_embeddings_outgrows_the_decoder():
    """B.3: about 300K objects of 1024 numbers; footnote 5 calls that six times a model. The hash keeps a ninth."""
    hashed = costs.embedding_bytes(PAPER["objaverse"])
    config = PAPER["objaverse"].replace(autodecoder=dict(hash_rows=0))
    assert hashed == 32_768 * 1024 * 4
    assert costs.embedding_bytes(config) == 300_000 * 1024 * 4
    size = costs.parameters(config)
    assert size["embedding"] / (size["G1"] + size["G2"]) == pytest.approx(5.56, abs=0.01)


def test_cross_attention_is_where_table_5_has_it_and_depth_pays():
    levels = {s.name: s.attention for s in costs.stages(PAPER_TEXT["mvimgnet"]) if s.part == "denoiser"}
    assert {kind for name, kind in levels.items() if name[0] in "edc"} == {"SA, CA"}
    assert levels["output"] == levels["input and noise level"] == ""
    plain, one, two = (costs.parameters(e)["denoiser"] for e in (PAPER["mvimgnet"], *list(PAPER_TEXT.values())[1:]))
    c, d = 192 * 3, 192 * 4
    block = [4 * w * w + 2 * w * w + 2 * w * 1024 + 12 * w * w + (1 + 1 + 8 + 1) * w + 3 * 2 * w for w in (c, d)]
    assert two - one == 7 * block[0] + 8 * block[1]  # 3 + 4 blocks at 8^3; 3 + 1 + 4 at 4^3
    assert plain < one


def test_sampling_is_heun_steps_and_a_decoding():
    config = experiment("smoke", "procedural_chairs")
    one = costs.flops(config)
    assert costs.sampling_flops(config) == 15 * one["denoiser"] + one["G2"]
    guided = PAPER_TEXT["mvimgnet"].replace(sampler=dict(guidance=3.0, num_steps=4))
    one = costs.flops(guided)
    assert costs.sampling_flops(guided) == 14 * one["denoiser"] + one["G2"]
