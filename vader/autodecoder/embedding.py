"""The library of embeddings: a learned vector per training object (GLO [3]), or one composed by a hash (B.3)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..settings.autodecoder import WORD_BITS, AutodecoderConfig
from ..settings.checks import require
from ..training.distributed import stream_seed

WORD = 2**WORD_BITS  # the multiplication method works modulo this


def make_embedding(config: AutodecoderConfig, num_objects: int) -> DenseEmbedding | HashEmbedding:
    """The embedding of these settings, hashed if `hash_rows` is set. Raises ConfigError for settings that fail."""
    if config.hash_rows:
        return HashEmbedding(num_objects, config)
    return DenseEmbedding(num_objects, config.embedding_dim, config.sparse_embedding)


class DenseEmbedding(nn.Module):
    """A table (num_objects, dim), one row per object, drawn from N(0, I).

    sparse: gradients hold the rows that were looked up, not the whole table (for `torch.optim.SparseAdam`).
    """

    def __init__(self, num_objects: int, dim: int, sparse: bool = False):
        super().__init__()
        self.num_objects, self.dim = num_objects, dim
        self.table = nn.Embedding(num_objects, dim, sparse=sparse)

    def forward(self, objects: Tensor) -> Tensor:
        """Object indices (b,) -> embeddings (b, dim)."""
        return self.table(objects)

    @torch.no_grad()
    def all(self) -> Tensor:
        """Every embedding, (num_objects, dim)."""
        return self.table.weight


class PartitionedEmbedding(nn.Module):
    """One rank's rows of a dense table: those of the objects in its partitions, from N(0, I).

    members: partition -> its objects, (n,) int64. A partition's rows are drawn from a stream of their own, so they
    are the same on whichever rank they are. Only objects of these partitions may be looked up.
    """

    def __init__(self, members: dict[int, Tensor], dim: int, seed: int, sparse: bool = False):
        super().__init__()
        self.dim, sizes = dim, [len(objects) for objects in members.values()]
        ends = torch.tensor(sizes).cumsum(0).tolist()
        self.spans = {j: slice(end - n, end) for j, end, n in zip(members, ends, sizes, strict=True)}
        self.objects = torch.cat(list(members.values()))
        ordered, places = self.objects.sort()
        self.register_buffer("ordered", ordered, persistent=False)
        self.register_buffer("places", places, persistent=False)
        generators = [torch.Generator().manual_seed(stream_seed(seed, j, -1)) for j in members]
        rows = [torch.randn(n, dim, generator=g) for n, g in zip(sizes, generators, strict=True)]
        self.table = nn.Embedding.from_pretrained(torch.cat(rows), freeze=False, sparse=sparse)

    def forward(self, objects: Tensor) -> Tensor:
        """Indices (b,) of objects in these partitions -> embeddings (b, dim)."""
        return self.table(self.places[torch.searchsorted(self.ordered, objects)])


class HashEmbedding(nn.Module):
    """Embeddings made of pieces that objects share (B.3), all drawn from N(0, I).

    There are `hash_codebooks` codebooks, each of `hash_rows` = 2^r pieces of embedding_dim / hash_codebooks numbers.
    Object k takes row m_i(k) of codebook i (Eq. 10) and its embedding H_k is the concatenation (Eq. 9). So the table
    is that of `hash_rows` dense embeddings, however many objects there are. `table.weight` holds codebook i's
    pieces in rows i 2^r to (i + 1) 2^r - 1.

    Raises ConfigError where there are fewer codes than objects, or more objects than the hash has indices.
    """

    def __init__(self, num_objects: int, config: AutodecoderConfig):
        super().__init__()
        rows, codebooks = config.hash_rows, config.hash_codebooks
        require(rows > 0, "hash_rows is 0, which means a dense table; expected a power of two")
        require(1 <= num_objects <= WORD, f"{num_objects} objects, expected 1 to 2^{WORD_BITS}, the indices of Eq. 10")
        require(
            rows**codebooks >= num_objects,
            f"hash_codebooks {codebooks} of hash_rows {rows} make {rows**codebooks} codes, fewer than {num_objects} "
            "objects",
        )
        self.num_objects, self.dim, self.rows = num_objects, config.embedding_dim, rows
        piece = config.embedding_dim // codebooks
        self.table = nn.Embedding(codebooks * rows, piece, sparse=config.sparse_embedding)
        self.register_buffer("multipliers", multipliers(config.hash_multipliers, codebooks), persistent=False)
        self.register_buffer("offsets", rows * torch.arange(codebooks), persistent=False)

    def codes(self, objects: Tensor) -> Tensor:
        """Object indices (b,) -> the row that each takes in every codebook, (b, hash_codebooks) int64, by Eq. 10.

        Raises IndexError for an index outside of [0, num_objects): the hash itself would take any.
        """
        recording = torch.cuda.is_current_stream_capturing()  # then nothing can be read back
        if objects.numel() and not recording and not 0 <= objects.min() <= objects.max() < self.num_objects:
            raise IndexError(
                f"object indices from {int(objects.min())} to {int(objects.max())}, "
                f"expected 0 to {self.num_objects - 1}"
            )
        return hash_rows(objects[:, None], self.multipliers, self.rows)

    def forward(self, objects: Tensor) -> Tensor:
        """Object indices (b,) -> embeddings H_k (b, dim), Eq. 9."""
        return self.table(self.codes(objects) + self.offsets).flatten(1)

    @torch.no_grad()
    def all(self) -> Tensor:
        """Every embedding, (num_objects, dim)."""
        objects = torch.arange(self.num_objects, device=self.table.weight.device)
        return torch.cat([self(chunk) for chunk in objects.split(4096)])


# ---------------------------------------------------------------------------------------------------- the hash


def multipliers(kind: str, codebooks: int) -> Tensor:
    """The a_i of Eq. 10 for codebooks i = 0 ... codebooks - 1, int64: odd numbers between 2^31 and 2^32.

    'literal' are Eq. 11's a_i = 2^31 + 2 i^2 + 1. They lie so close to 2^31 that a_i k mod 2^32 has hardly more than
    the parity of a small k in its upper bits, which the hash keeps. 'corrected' ones have bits as if drawn at random:
    the first 32 of SHA-256 of the text "codebook <i>", with the highest and the lowest set to 1.
    """
    half = WORD // 2
    if kind == "literal":
        return torch.tensor([half + 2 * i**2 + 1 for i in range(codebooks)])
    words = (hashlib.sha256(f"codebook {i}".encode()).digest()[: WORD_BITS // 8] for i in range(codebooks))
    return torch.tensor([int.from_bytes(word) | half | 1 for word in words])


def hash_rows(objects: Tensor, multipliers: Tensor, rows: int) -> Tensor:
    """Eq. 10: m(k) = ((a k) mod 2^32) >> (32 - r) in [0, rows), with rows = 2^r; int64, shapes broadcast."""
    # int64 products may overflow, which leaves their lower 32 bits as they are
    return ((objects * multipliers) & (WORD - 1)) >> (WORD_BITS - rows.bit_length() + 1)


@dataclass(frozen=True)
class CodeStatistics:
    """Collisions and table use of the codes of objects 0 ... objects - 1."""

    objects: int
    distinct: int  # different codes
    sharing: int  # objects whose code, and so embedding, another object has as well
    largest: int  # objects that have the most frequent code
    table_use: float  # share of the table's rows that some object takes


def code_statistics(config: AutodecoderConfig, num_objects: int) -> CodeStatistics:
    """Collisions and table use of a hash, exactly, without building its table; 300,000 objects take seconds."""
    objects, rows = torch.arange(num_objects), config.hash_rows
    groups = torch.zeros(num_objects, dtype=torch.int64)  # objects with equal rows so far have equal numbers
    sizes, used = torch.tensor([num_objects]), 0
    # the last first: of Eq. 11's multipliers they tell the most objects apart
    for a in multipliers(config.hash_multipliers, config.hash_codebooks).flip(0):
        taken = hash_rows(objects, a, rows)
        used += int((torch.bincount(taken, minlength=rows) > 0).sum())
        if len(sizes) < num_objects:
            _, groups, sizes = torch.unique(groups * rows + taken, return_inverse=True, return_counts=True)
    table_use = used / (rows * config.hash_codebooks)
    return CodeStatistics(num_objects, len(sizes), int(sizes[sizes > 1].sum()), int(sizes.max()), table_use)


def shared_rows(config: AutodecoderConfig, num_objects: int, distances: tuple[int, ...]) -> list[float]:
    """For each distance d, the mean share of an embedding that objects k and k + d have in common, 0 to 1.

    A good hash shares 1 / hash_rows, whatever d is.
    """
    objects = torch.arange(num_objects)
    equal = [0] * len(distances)
    for a in multipliers(config.hash_multipliers, config.hash_codebooks):
        taken = hash_rows(objects, a, config.hash_rows)
        for i, d in enumerate(distances):
            equal[i] += int((taken[d:] == taken[:-d]).sum())
    return [n / (config.hash_codebooks * (num_objects - d)) for n, d in zip(equal, distances, strict=True)]
