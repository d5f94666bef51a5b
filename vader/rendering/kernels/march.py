"""The fused renderer's CUDA kernels, written in Triton: the marches of `cpu`, a thread per ray.

Rays, their entry into the cube and their exit are made in the kernel, from cameras or from origins and directions.
Volumes are (b, z, y, x, 4) in float32, float16 or bfloat16: a thread reads the four channels of a voxel as one vector
and works in float32. The backward march adds into one float32 gradient per object with atomics, so the order of those
sums, and with it their last bits, varies from run to run.

A ray takes several samples in a cell, and shares half of a cell's voxels with the next one. So it keeps eight voxels,
in slots named by the parities of their indices along z, y and x, and loads a slot only when its voxel changes. The
backward march keeps a gradient beside each and adds it to memory then. With KEEP off every sample loads and adds all.

Few rays do not fill a GPU: then each is marched in PARTS at once, by as many warps of one program, as if all light
reached each part. What a part does to the light, and its sums, go to memory, where the forward march joins them and the
backward march finds what its part started from.

Notation as in `cpu`. In Triton's interpreter (TRITON_INTERPRET=1) the kernels run on CPU tensors as well.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .lines import cut_ray, depth_of


@triton.jit
def _axis(origin, direction, t, size):
    """Of a sample's cell along an axis: its index, the even and the odd one of its two voxels, the odd one's weight."""
    position = tl.minimum(tl.maximum(origin + t * direction, 0.0), size - 1.0)
    index = tl.minimum(position.to(tl.int32), size - 2)
    fraction = position - index.to(tl.float32)
    return index, (index + 1) & -2, index | 1, tl.where(index % 2 == 1, 1 - fraction, fraction)


@triton.jit
def _corners(line, t, d_size, h_size, w_size):
    """Of samples' cells: the indices, eight voxels by parity of (z, y, x), even first, and the odd ones' weights."""
    ix, ex, ox, wx = _axis(line[0], line[3], t, w_size)
    iy, ey, oy, wy = _axis(line[1], line[4], t, h_size)
    iz, ez, oz, wz = _axis(line[2], line[5], t, d_size)
    ee, eo = (ez * h_size + ey) * w_size, (ez * h_size + oy) * w_size
    oe, oo = (oz * h_size + ey) * w_size, (oz * h_size + oy) * w_size
    return (iz, iy, ix), (ee + ex, ee + ox, eo + ex, eo + ox, oe + ex, oe + ox, oo + ex, oo + ox), (wz, wy, wx)


@triton.jit
def _weights(fractions):
    """Of the eight corners, in the order of `_corners`."""
    wz, wy, wx = fractions
    vz, vy, vx = 1 - wz, 1 - wy, 1 - wx
    ee, eo, oe, oo = vz * vy, vz * wy, wz * vy, wz * wy
    return ee * vx, ee * wx, eo * vx, eo * wx, oe * vx, oe * wx, oo * vx, oo * wx


@triton.jit
def _load(volume, voxel, held, values, wanted, KEEP: tl.constexpr):
    """A slot for this voxel: the voxel it holds now and its four channels, loaded if it has held another one."""
    new = wanted
    if KEEP:
        new = wanted & (voxel != held)
    pointers = volume + voxel[:, None] * 4 + tl.arange(0, 4)[None, :]
    kept = values.to(volume.dtype.element_ty)
    values = tl.load(pointers, mask=new[:, None], other=kept).to(tl.float32)
    return tl.where(new, voxel, held), values


@triton.jit
def _add(grad, held, total, now):
    """Add what a slot has gathered to the voxel that it holds."""
    pointers = grad + held[:, None] * 4 + tl.arange(0, 4)[None, :]
    tl.atomic_add(pointers, total, mask=(now & (held >= 0))[:, None], sem="relaxed")


@triton.jit
def _add_all(grad, held, totals, now):
    for slot in tl.static_range(8):
        _add(grad, held[slot], totals[slot], now)


@triton.jit
def _exchange(volume, grad, voxel, held, values, total, wanted, KEEP: tl.constexpr):
    """`_load` for the backward march: a slot that changes hands over its gradient first."""
    new = wanted
    if KEEP:
        new = wanted & (voxel != held)
    _add(grad, held, total, new)
    held, values = _load(volume, voxel, held, values, wanted, KEEP)
    return held, values, tl.where(new[:, None], 0.0, total)


@triton.jit
def _sum(w, s0, s1, s2, s3, s4, s5, s6, s7):
    """The trilinear value (rays, 4) of eight slots."""
    values = s0 * w[0][:, None] + s1 * w[1][:, None] + s2 * w[2][:, None] + s3 * w[3][:, None]
    return values + s4 * w[4][:, None] + s5 * w[5][:, None] + s6 * w[6][:, None] + s7 * w[7][:, None]


@triton.jit
def _channels(values):
    density_green, red_blue = tl.split(tl.reshape(values, (values.shape[0], 2, 2)))
    density, green = tl.split(density_green)
    red, blue = tl.split(red_blue)
    return density, red, green, blue


@triton.jit
def _pushed(density, weight, red, green, blue):
    """What a sample gives to its cell, (rays, 4)."""
    pairs = tl.join(tl.join(density, weight * green), tl.join(weight * red, weight * blue))
    return tl.reshape(pairs, (density.shape[0], 4))


@triton.jit
def _in_brick(bricks, cell, d_size, h_size, w_size, active, BRICK: tl.constexpr):
    """Which of the samples in these cells (z, y, x) are in a brick that is not empty."""
    rows, columns = (h_size - 2) // BRICK + 1, (w_size - 2) // BRICK + 1
    place = ((cell[0] // BRICK) * rows + cell[1] // BRICK) * columns + cell[2] // BRICK
    return active & (tl.load(bricks + place, mask=active, other=0) != 0)


@triton.jit
def _object(b, volume, bricks, d_size, h_size, w_size, SKIP: tl.constexpr, BRICK: tl.constexpr):
    """Where an object's voxels and bricks begin."""
    if SKIP:
        bricks += b * ((d_size - 2) // BRICK + 1) * ((h_size - 2) // BRICK + 1) * ((w_size - 2) // BRICK + 1)
    return volume + b * d_size * h_size * w_size * 4, bricks


@triton.jit
def _lanes(r_count, RAYS: tl.constexpr, PARTS: tl.constexpr):
    """Of a program's threads: the object, the ray among those of all objects, whether there is one, and its part."""
    b = tl.program_id(1).to(tl.int64)
    lane = tl.arange(0, RAYS * PARTS)
    row = tl.program_id(0) * RAYS + lane % RAYS
    return b, b * r_count + row, row < r_count, lane // RAYS


@triton.jit
def _seed(seeds, seed_term, SEEDS: tl.constexpr):
    """What `depth_of` takes of the seed: as it was given, or of the one in memory."""
    if SEEDS:
        seed_term = tl.load(seeds) * 0x9E3779B9
    return seed_term


@triton.jit
def _sample(i, part, count, n, active, PARTS: tl.constexpr):
    """Number of sample i of a part of so many, and whether it is there."""
    index, wanted = i, active
    if PARTS > 1:
        index = part * count + i
        wanted = active & (index < n)
    return index, wanted


@triton.jit
def _keep(parts, ray, part, exists, red, green, blue, depth, light, PARTS: tl.constexpr):
    place = parts + (ray * PARTS + part) * 5
    tl.store(place, red, exists)
    tl.store(place + 1, green, exists)
    tl.store(place + 2, blue, exists)
    tl.store(place + 3, depth, exists)
    tl.store(place + 4, light, exists)


@triton.jit
def _joined(parts, ray, before, exists, PARTS: tl.constexpr):
    """Red, green, blue, depth and light of rays behind so many of their parts."""
    light = tl.full((ray.shape[0],), 1.0, tl.float32)
    red = tl.zeros((ray.shape[0],), tl.float32)
    green, blue, depth = red, red, red
    for part in tl.static_range(PARTS):
        place, here = parts + (ray * PARTS + part) * 5, exists & (part < before)
        red += light * tl.load(place, here, 0.0)
        green += light * tl.load(place + 1, here, 0.0)
        blue += light * tl.load(place + 2, here, 0.0)
        depth += light * tl.load(place + 3, here, 0.0)
        light *= tl.load(place + 4, here, 1.0)
    return red, green, blue, depth, light


@triton.jit
def bricks_kernel(volume, bricks, threshold, d_size, h_size, w_size, BRICK: tl.constexpr):
    """bricks (b, z, y, x): whether a cell of a BRICK^3 brick may have a density above the threshold."""
    columns, rows = (w_size - 2) // BRICK + 1, (h_size - 2) // BRICK + 1
    layers = (d_size - 2) // BRICK + 1
    brick, b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    i = tl.arange(0, 512)
    z = (brick // (columns * rows)) * BRICK + i // 64
    y = (brick // columns % rows) * BRICK + i // 8 % 8
    x = (brick % columns) * BRICK + i % 8
    inside = (i // 64 <= BRICK) & (i // 8 % 8 <= BRICK) & (i % 8 <= BRICK)
    inside = inside & (z < d_size) & (y < h_size) & (x < w_size)
    place = volume + (b * d_size * h_size * w_size + (z * h_size + y) * w_size + x) * 4
    density = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    full = tl.max((inside & ~(density <= threshold)).to(tl.int32), axis=0)  # NaN is not empty
    tl.store(bricks + b * layers * rows * columns + brick, full.to(tl.uint8))


@triton.jit(do_not_specialize=["seed_term", "n"])
def forward_kernel(volume, origins, directions, bricks, seeds, colour, seen, far_off, parts, near, far, r_count, area,
                   width, d_size, h_size, w_size, n, seed_term, stop, CAMERAS: tl.constexpr, STRATIFIED: tl.constexpr,
                   SEEDS: tl.constexpr, EARLY: tl.constexpr, SKIP: tl.constexpr, KEEP: tl.constexpr,
                   RAYS: tl.constexpr, PARTS: tl.constexpr, BRICK: tl.constexpr):  # fmt: skip
    b, ray, exists, part = _lanes(r_count, RAYS, PARTS)
    seed_term = _seed(seeds, seed_term, SEEDS)
    volume, bricks = _object(b, volume, bricks, d_size, h_size, w_size, SKIP, BRICK)
    line, t0, step = cut_ray(
        origins, directions, ray, exists, near, far, area, width, n, d_size, h_size, w_size, CAMERAS
    )
    light, occupancy = tl.full((RAYS * PARTS,), 1.0, tl.float32), tl.zeros((RAYS * PARTS,), tl.float32)
    depth, sums = occupancy, tl.zeros((RAYS * PARTS, 4), tl.float32)
    s0, s1, s2, s3, s4, s5, s6, s7 = sums, sums, sums, sums, sums, sums, sums, sums
    k0 = tl.full((RAYS * PARTS,), -1, tl.int32)
    k1, k2, k3, k4, k5, k6, k7 = k0, k0, k0, k0, k0, k0, k0
    active, i = step > 0, 0
    running = tl.max(active.to(tl.int32), axis=0) > 0
    count = (n + PARTS - 1) // PARTS
    while running:
        index, wanted = _sample(i, part, count, n, active, PARTS)
        t = depth_of(index, t0, step, seed_term, ray * n, STRATIFIED)
        cell, k, fractions = _corners(line, t, d_size, h_size, w_size)
        if SKIP:
            wanted = _in_brick(bricks, cell, d_size, h_size, w_size, wanted, BRICK)
        k0, s0 = _load(volume, k[0], k0, s0, wanted, KEEP)
        k1, s1 = _load(volume, k[1], k1, s1, wanted, KEEP)
        k2, s2 = _load(volume, k[2], k2, s2, wanted, KEEP)
        k3, s3 = _load(volume, k[3], k3, s3, wanted, KEEP)
        k4, s4 = _load(volume, k[4], k4, s4, wanted, KEEP)
        k5, s5 = _load(volume, k[5], k5, s5, wanted, KEEP)
        k6, s6 = _load(volume, k[6], k6, s6, wanted, KEEP)
        k7, s7 = _load(volume, k[7], k7, s7, wanted, KEEP)
        values = _sum(_weights(fractions), s0, s1, s2, s3, s4, s5, s6, s7)
        density, _, _, _ = _channels(values)
        after = tl.where(wanted, light * tl.exp(-density * step), light)
        weight = light - after
        sums += weight[:, None] * values
        occupancy += weight
        depth += weight * t
        light = after
        i += 1
        running = i < count
        if EARLY:
            active = active & (light >= stop)
            running = running & (tl.max(active.to(tl.int32), axis=0) > 0)
    _, red, green, blue = _channels(sums)
    if PARTS > 1:
        _keep(parts, ray, part, exists, red, green, blue, depth, light, PARTS)
        tl.debug_barrier()  # all parts of a ray belong to this program
        red, green, blue, depth, light = _joined(parts, ray, PARTS, exists, PARTS)
        occupancy = 1 - light
        exists = exists & (part == 0)
    tl.store(colour + ray * 3, red, exists)
    tl.store(colour + ray * 3 + 1, green, exists)
    tl.store(colour + ray * 3 + 2, blue, exists)
    tl.store(seen + ray, occupancy, exists)
    tl.store(far_off + ray, depth, exists)


@triton.jit
def _above(colour, seen, far_off, g_colour, g_seen, g_far_off, ray, exists, colour_row, seen_row, far_off_row,
           COLOUR: tl.constexpr, SEEN: tl.constexpr, FAR_OFF: tl.constexpr):  # fmt: skip
    """Gradients of a ray's results (red, green, blue, occupancy, depth), and their product with the results."""
    red = tl.zeros((ray.shape[0],), tl.float32)
    green, blue, occupancy, depth, product = red, red, red, red, red
    if COLOUR:
        place, mine = g_colour + ray * colour_row, colour + ray * 3
        red, green, blue = tl.load(place, exists, 0.0), tl.load(place + 1, exists, 0.0), tl.load(place + 2, exists, 0.0)
        product += red * tl.load(mine, exists, 0.0) + green * tl.load(mine + 1, exists, 0.0)
        product += blue * tl.load(mine + 2, exists, 0.0)
    if SEEN:
        occupancy = tl.load(g_seen + ray * seen_row, exists, 0.0)
        product += occupancy * tl.load(seen + ray, exists, 0.0)
    if FAR_OFF:
        depth = tl.load(g_far_off + ray * far_off_row, exists, 0.0)
        product += depth * tl.load(far_off + ray, exists, 0.0)
    return red, green, blue, occupancy, depth, product


@triton.jit(do_not_specialize=["seed_term", "n"])
def backward_kernel(volume, origins, directions, bricks, seeds, colour, seen, far_off, parts, g_colour, g_seen,
                    g_far_off, grad, near, far, r_count, area, width, d_size, h_size, w_size, n, seed_term, stop,
                    colour_row, seen_row, far_off_row, COLOUR: tl.constexpr, SEEN: tl.constexpr, FAR_OFF: tl.constexpr,
                    CAMERAS: tl.constexpr, STRATIFIED: tl.constexpr, SEEDS: tl.constexpr, EARLY: tl.constexpr,
                    SKIP: tl.constexpr, KEEP: tl.constexpr, RAYS: tl.constexpr, PARTS: tl.constexpr,
                    BRICK: tl.constexpr):  # fmt: skip
    b, ray, exists, part = _lanes(r_count, RAYS, PARTS)
    seed_term = _seed(seeds, seed_term, SEEDS)
    volume, bricks = _object(b, volume, bricks, d_size, h_size, w_size, SKIP, BRICK)
    grad += b * d_size * h_size * w_size * 4
    line, t0, step = cut_ray(
        origins, directions, ray, exists, near, far, area, width, n, d_size, h_size, w_size, CAMERAS
    )
    red, green, blue, occupancy, depth, later = _above(
        colour, seen, far_off, g_colour, g_seen, g_far_off, ray, exists, colour_row, seen_row, far_off_row,
        COLOUR, SEEN, FAR_OFF)  # fmt: skip
    light, zero = tl.full((RAYS * PARTS,), 1.0, tl.float32), tl.zeros((RAYS * PARTS, 4), tl.float32)
    if PARTS > 1:
        first_red, first_green, first_blue, first_depth, light = _joined(parts, ray, part, exists, PARTS)
        later -= red * first_red + green * first_green + blue * first_blue + depth * first_depth
        later -= occupancy * (1 - light)
    s0, s1, s2, s3, s4, s5, s6, s7 = zero, zero, zero, zero, zero, zero, zero, zero
    g0, g1, g2, g3, g4, g5, g6, g7 = zero, zero, zero, zero, zero, zero, zero, zero
    k0 = tl.full((RAYS * PARTS,), -1, tl.int32)
    k1, k2, k3, k4, k5, k6, k7 = k0, k0, k0, k0, k0, k0, k0
    active, i = step > 0, 0
    running = tl.max(active.to(tl.int32), axis=0) > 0
    count = (n + PARTS - 1) // PARTS
    while running:
        index, wanted = _sample(i, part, count, n, active, PARTS)
        t = depth_of(index, t0, step, seed_term, ray * n, STRATIFIED)
        cell, k, fractions = _corners(line, t, d_size, h_size, w_size)
        if SKIP:
            wanted = _in_brick(bricks, cell, d_size, h_size, w_size, wanted, BRICK)
        k0, s0, g0 = _exchange(volume, grad, k[0], k0, s0, g0, wanted, KEEP)
        k1, s1, g1 = _exchange(volume, grad, k[1], k1, s1, g1, wanted, KEEP)
        k2, s2, g2 = _exchange(volume, grad, k[2], k2, s2, g2, wanted, KEEP)
        k3, s3, g3 = _exchange(volume, grad, k[3], k3, s3, g3, wanted, KEEP)
        k4, s4, g4 = _exchange(volume, grad, k[4], k4, s4, g4, wanted, KEEP)
        k5, s5, g5 = _exchange(volume, grad, k[5], k5, s5, g5, wanted, KEEP)
        k6, s6, g6 = _exchange(volume, grad, k[6], k6, s6, g6, wanted, KEEP)
        k7, s7, g7 = _exchange(volume, grad, k[7], k7, s7, g7, wanted, KEEP)
        w = _weights(fractions)
        density, r, g, b_ = _channels(_sum(w, s0, s1, s2, s3, s4, s5, s6, s7))
        score = red * r + green * g + blue * b_ + occupancy + depth * t
        after = tl.where(wanted, light * tl.exp(-density * step), light)
        weight = light - after
        later -= weight * score
        push = _pushed(tl.where(wanted, step * (after * score - later), 0.0), weight, red, green, blue)
        g0, g1 = g0 + push * w[0][:, None], g1 + push * w[1][:, None]
        g2, g3 = g2 + push * w[2][:, None], g3 + push * w[3][:, None]
        g4, g5 = g4 + push * w[4][:, None], g5 + push * w[5][:, None]
        g6, g7 = g6 + push * w[6][:, None], g7 + push * w[7][:, None]
        light = after
        i += 1
        running = i < count
        if EARLY:
            active = active & (light >= stop)
            running = running & (tl.max(active.to(tl.int32), axis=0) > 0)
    _add_all(grad, (k0, k1, k2, k3, k4, k5, k6, k7), (g0, g1, g2, g3, g4, g5, g6, g7), exists)
