"""Embeddings: Eq. 9-11 against a slow loop, collisions that are known, gradients, and settings that cannot work."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vader.autodecoder.embedding import (
    DenseEmbedding,
    HashEmbedding,
    code_statistics,
    hash_rows,
    make_embedding,
    multipliers,
    shared_rows,
)
from vader.autodecoder.reconstruction import JointOptimizer
from vader.settings.autodecoder import AutodecoderConfig
from vader.settings.checks import ConfigError

SMALL = AutodecoderConfig(embedding_dim=12, hash_rows=8, hash_codebooks=4)
# data set -> (objects, rows of a codebook), B.3 and Sec. 4.1
PAPER = {"abo_tables": (1_676, 256), "celebv_text": (44_400, 8_192), "objaverse": (300_000, 32_768)}


def paper_config(name: str, kind: str) -> AutodecoderConfig:
    return AutodecoderConfig(hash_rows=PAPER[name][1], hash_multipliers=kind)


# ------------------------------------------------------------------------------------------------- the equations


@pytest.mark.parametrize("kind", ["literal", "corrected"])
def test_embeddings_against_a_loop_over_the_equations(kind):
    torch.manual_seed(0)
    config = AutodecoderConfig(embedding_dim=12, hash_rows=8, hash_codebooks=4, hash_multipliers=kind)
    embedding = HashEmbedding(1_000, config)
    codebooks = embedding.table.weight.view(4, 8, 3)
    objects = [0, 1, 2, 77, 998, 999]
    for k, found in zip(objects, embedding(torch.tensor(objects)), strict=True):
        pieces = []
        for i in range(4):
            a = 2**31 + 2 * i**2 + 1 if kind == "literal" else int(multipliers(kind, 4)[i])  # Eq. 11
            m = ((a * k) % 2**32) >> (32 - 3)  # Eq. 10 in Python's unbounded integers, 2^3 rows
            pieces.append(codebooks[i, m])
        assert torch.equal(found, torch.cat(pieces)), f"object {k}"  # Eq. 9


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**31 - 1), st.integers(1, 32))
def test_the_hash_is_exact_where_products_overflow(k, half_a, r):
    a = 2 * half_a + 1
    assert hash_rows(torch.tensor(k), torch.tensor(a), 2**r).item() == ((a * k) % 2**32) >> (32 - r)


@pytest.mark.parametrize("kind", ["literal", "corrected"])
def test_multipliers_are_odd_between_2_31_and_2_32_and_all_different(kind):
    a = multipliers(kind, 256)
    assert (a % 2 == 1).all() and (a > 2**31).all() and (a < 2**32).all() and len(a.unique()) == 256
    assert torch.equal(multipliers(kind, 16), a[:16]), "more codebooks leave the first ones as they are"


def test_corrected_multipliers_spread_over_their_range():
    a = (multipliers("corrected", 256).double() - 2**31) / 2**31  # uniform on [0, 1) if as good as random
    assert abs(a.mean() - 0.5) < 4 / math.sqrt(12 * 256)
    assert (multipliers("literal", 256).double() - 2**31).max() / 2**31 < 1e-4


# ------------------------------------------------------------------------------------------------- collisions


def test_statistics_against_counting_rows_of_codes():
    config = AutodecoderConfig(embedding_dim=8, hash_rows=4, hash_codebooks=2)
    codes = HashEmbedding(15, config).codes(torch.arange(15))
    _, sizes = codes.unique(dim=0, return_counts=True)
    found = code_statistics(config, 15)
    assert (found.distinct, found.largest) == (len(sizes), sizes.max())
    assert found.sharing == sum(int(n) for n in sizes if n > 1) > 0
    used = {(i, m) for code in codes.tolist() for i, m in enumerate(code)}
    assert found.table_use == len(used) / 8
    for d, share in zip((1, 3), shared_rows(config, 15, (1, 3)), strict=True):
        assert share == pytest.approx((codes[d:] == codes[:-d]).double().mean().item())


def test_eq_11_collides_on_abo_tables():
    found = code_statistics(paper_config("abo_tables", "literal"), 1_676)
    assert (found.objects, found.distinct, found.sharing) == (1_676, 1_176, 818)
    assert found.table_use == pytest.approx(0.038, abs=5e-4)


def test_eq_11_leaves_objects_on_objaverse_half_the_same():
    assert shared_rows(paper_config("objaverse", "literal"), 20_000, (2,))[0] == pytest.approx(0.47, abs=0.01)
    assert shared_rows(paper_config("objaverse", "corrected"), 20_000, (2,))[0] < 1e-3


@pytest.mark.parametrize("name", PAPER)
def test_the_corrected_hash_has_no_collisions_on_the_papers_sets(name):
    found = code_statistics(paper_config(name, "corrected"), PAPER[name][0])
    assert (found.distinct, found.sharing, found.largest) == (PAPER[name][0], 0, 1)
    assert found.table_use > 0.95


# ----------------------------------------------------------------------------------------- as part of a model


@pytest.mark.parametrize("sparse", [False, True])
def test_gradients_reach_the_rows_that_were_taken_and_no_others(sparse):
    config = AutodecoderConfig(embedding_dim=12, hash_rows=8, hash_codebooks=4, sparse_embedding=sparse)
    embedding = HashEmbedding(100, config)
    objects = torch.tensor([5, 31])
    weights = torch.randn(2, 12)
    (embedding(objects) * weights).sum().backward()
    expected = torch.zeros(4, 8, 3)
    for n, code in enumerate(embedding.codes(objects).tolist()):
        for i, m in enumerate(code):
            expected[i, m] += weights[n, 3 * i : 3 * i + 3]
    grad = embedding.table.weight.grad
    assert grad.is_sparse is sparse
    assert torch.allclose(grad.to_dense() if sparse else grad, expected.view(32, 3))


def test_all_lists_every_embedding_and_only_the_table_is_stored():
    for embedding in (HashEmbedding(40, SMALL), DenseEmbedding(40, 12)):
        assert torch.equal(embedding.all(), embedding(torch.arange(40)).detach())
        assert list(embedding.state_dict()) == ["table.weight"]


def test_the_factory_follows_the_settings():
    dense = make_embedding(AutodecoderConfig(embedding_dim=12, sparse_embedding=True), 5)
    assert isinstance(dense, DenseEmbedding) and dense.table.weight.shape == (5, 12) and dense.table.sparse
    hashed = make_embedding(SMALL, 1_000)
    assert isinstance(hashed, HashEmbedding) and hashed.table.weight.numel() == 8 * 12 and not hashed.table.sparse


def _two_parts() -> tuple[torch.nn.Linear, HashEmbedding, JointOptimizer]:
    torch.manual_seed(0)
    linear, table = torch.nn.Linear(12, 1), HashEmbedding(40, dataclasses.replace(SMALL, sparse_embedding=True))
    adam = torch.optim.Adam(linear.parameters(), lr=1e-3)
    return linear, table, JointOptimizer(adam, torch.optim.SparseAdam(table.parameters(), lr=1e-2))


def test_two_optimisers_resume_as_one():
    """Two steps in a row, and one step, a copy of all states, and another step, end at the same weights."""

    def step(linear, table, optimizer, k):
        optimizer.zero_grad()
        linear(table(torch.tensor([k]))).square().sum().backward()
        optimizer.step()

    parts, resumed = _two_parts(), _two_parts()
    step(*parts, 3)
    state = parts[2].state_dict()
    state["param_groups"][1]["lr"] = 5e-3  # as a checkpoint writes the full rate into it
    resumed[0].load_state_dict(parts[0].state_dict())
    resumed[1].load_state_dict(parts[1].state_dict())
    resumed[2].load_state_dict(copy.deepcopy(state))
    assert [group["lr"] for group in resumed[2].param_groups] == [1e-3, 5e-3]
    parts[2].param_groups[1]["lr"] = 5e-3
    before = parts[1].table.weight.detach().clone()
    step(*parts, 7)
    step(*resumed, 7)
    assert torch.equal(parts[1].table.weight, resumed[1].table.weight)
    assert torch.equal(parts[0].weight, resumed[0].weight)
    changed = (parts[1].table.weight != before).any(dim=1).nonzero().flatten()
    assert set(changed.tolist()) == set((parts[1].codes(torch.tensor([7])) + parts[1].offsets).flatten().tolist())


# -------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(hash_rows=100), "hash_rows is 100, expected a power of two from 2"),
        (dict(hash_rows=1), "hash_rows is 1, expected a power of two from 2"),
        (dict(hash_rows=-8), "hash_rows is -8, expected a power of two"),
        (dict(hash_rows=2**33), "expected a power of two from 2 to 2\\^32"),
        (dict(hash_rows=8, hash_codebooks=3), "embedding_dim 1024 does not divide into hash_codebooks 3"),
        (dict(hash_rows=8, hash_codebooks=0), "does not divide into hash_codebooks 0"),
        (dict(hash_rows=8, hash_multipliers="litteral"), "'litteral' .did you mean 'literal'"),
        (dict(hash_multipliers="literal"), "of no use without hash_rows"),
        (dict(hash_codebooks=16), "of no use without hash_rows"),
        (
            dict(embedding_dim=65_536, hash_rows=2, hash_codebooks=65_536, hash_multipliers="literal"),
            "expected at most 32768, since Eq. 11",
        ),
    ],
)
def test_hashes_that_cannot_work(settings, message):
    with pytest.raises(ConfigError, match=message):
        AutodecoderConfig(**settings)


def test_eq_11_has_its_last_multiplier_below_2_32():
    assert multipliers("literal", 32_768)[-1] < 2**32


def test_more_objects_than_codes_are_refused():
    config = AutodecoderConfig(embedding_dim=8, hash_rows=4, hash_codebooks=2)
    assert HashEmbedding(16, config).num_objects == 16
    with pytest.raises(ConfigError, match="hash_codebooks 2 of hash_rows 4 make 16 codes, fewer than 17"):
        HashEmbedding(17, config)
    with pytest.raises(ConfigError, match="0 objects, expected 1 to"):
        HashEmbedding(0, config)
    with pytest.raises(ConfigError, match="hash_rows is 0, which means a dense table"):
        HashEmbedding(5, AutodecoderConfig())


@pytest.mark.parametrize("index", [-1, 40])
def test_objects_that_are_not_in_the_table_are_refused(index):
    for embedding in (HashEmbedding(40, SMALL), DenseEmbedding(40, 12)):
        with pytest.raises(IndexError):
            embedding(torch.tensor([0, index]))
