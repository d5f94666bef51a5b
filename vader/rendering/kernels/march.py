"""The fused renderer's CUDA kernels, written in Triton: the marches of `cpu`, a thread per ray.

Rays, their entry into the cube and their exit are made in the kernel, from cameras or from origins and directions.
Volumes are (b, z, y, x, 4) in float32, float16 or bfloat16: a thread reads the four channels of a voxel as one vector
and works in float32. The backward march adds into one float32 gradient per object with atomics, so the order of those
sums, and with it their last bits, varies from run to run.

A ray takes several samples in a cell, and shares half of a cell's voxels with the next one. So it keeps eight voxels,
in slots named by the parities of their indices along z, y and x, and loads a slot only when its voxel changes. The
backward march keeps a gradient beside each and adds it to memory then. With KEEP off every sample loads and adds all.

Notation as in `cpu`. In Triton's interpreter (TRITON_INTERPRET=1) the kernels run on CPU tensors as well.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _hash_uniform(seed_term, index):
    """`reference.hash_uniform` of int64 indices; seed_term is seed * 0x9E3779B9 mod 2^32."""
    x = (index + seed_term).to(tl.uint32)
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    x = x ^ (x >> 16)
    return (x >> 8).to(tl.float32) * (1.0 / 16777216.0)


@triton.jit
def _clip_axis(origin, direction, enter, leave):
    """Depths of a ray inside the cube, narrowed by the two faces across an axis; nothing is left where it misses."""
    along = tl.abs(direction) < 1e-9
    inverse = 1.0 / tl.where(along, 1.0, direction)
    t0, t1 = (-1 - origin) * inverse, (1 - origin) * inverse
    first, last = tl.minimum(t0, t1), tl.maximum(t0, t1)
    misses = along & (tl.abs(origin) > 1)
    enter = tl.where(misses, float("inf"), tl.where(along, enter, tl.maximum(enter, first)))
    return enter, tl.where(along, leave, tl.minimum(leave, last))


@triton.jit
def _camera_ray(cameras, lenses, camera, pixel, width, exists):
    """Origin and unit direction through a pixel's centre, of world_to_camera (3, 4) and intrinsics (3, 3)."""
    e, k = cameras + camera * 12, lenses + camera * 9
    u, v = (pixel % width).to(tl.float32) + 0.5, (pixel // width).to(tl.float32) + 0.5
    a, b, c = tl.load(k, exists, 1.0), tl.load(k + 1, exists, 0.0), tl.load(k + 2, exists, 0.0)
    d, f, g = tl.load(k + 3, exists, 0.0), tl.load(k + 4, exists, 1.0), tl.load(k + 5, exists, 0.0)
    h, i, j = tl.load(k + 6, exists, 0.0), tl.load(k + 7, exists, 0.0), tl.load(k + 8, exists, 1.0)
    # (u, v, 1) under the adjugate of the intrinsics, over their determinant
    determinant = a * (f * j - g * i) - b * (d * j - g * h) + c * (d * i - f * h)
    x = ((f * j - g * i) * u + (c * i - b * j) * v + (b * g - c * f)) / determinant
    y = ((g * h - d * j) * u + (a * j - c * h) * v + (c * d - a * g)) / determinant
    z = ((d * i - f * h) * u + (b * h - a * i) * v + (a * f - b * d)) / determinant
    r00, r01, r02 = tl.load(e, exists, 1.0), tl.load(e + 1, exists, 0.0), tl.load(e + 2, exists, 0.0)
    r10, r11, r12 = tl.load(e + 4, exists, 0.0), tl.load(e + 5, exists, 1.0), tl.load(e + 6, exists, 0.0)
    r20, r21, r22 = tl.load(e + 8, exists, 0.0), tl.load(e + 9, exists, 0.0), tl.load(e + 10, exists, 1.0)
    tx, ty, tz = tl.load(e + 3, exists, 0.0), tl.load(e + 7, exists, 0.0), tl.load(e + 11, exists, 0.0)
    dx, dy, dz = r00 * x + r10 * y + r20 * z, r01 * x + r11 * y + r21 * z, r02 * x + r12 * y + r22 * z
    length = 1.0 / tl.sqrt(dx * dx + dy * dy + dz * dz)
    ox, oy, oz = -(r00 * tx + r10 * ty + r20 * tz), -(r01 * tx + r11 * ty + r21 * tz), -(r02 * tx + r12 * ty + r22 * tz)
    return ox, oy, oz, dx * length, dy * length, dz * length


@triton.jit
def _ray(origins, directions, ray, exists, near, far, area, width, n, d_size, h_size, w_size, CAMERAS: tl.constexpr):
    """A ray in voxel units, its depth of entry and its step; the step is 0 where there is nothing to march."""
    if CAMERAS:
        ox, oy, oz, dx, dy, dz = _camera_ray(origins, directions, ray // area, ray % area, width, exists)
    else:
        o, d = origins + ray * 3, directions + ray * 3
        ox, oy, oz = tl.load(o, exists, 0.0), tl.load(o + 1, exists, 0.0), tl.load(o + 2, exists, 0.0)
        dx, dy, dz = tl.load(d, exists, 0.0), tl.load(d + 1, exists, 0.0), tl.load(d + 2, exists, 0.0)
    enter, leave = tl.zeros_like(ox) + near, tl.zeros_like(ox) + far
    enter, leave = _clip_axis(ox, dx, enter, leave)
    enter, leave = _clip_axis(oy, dy, enter, leave)
    enter, leave = _clip_axis(oz, dz, enter, leave)
    step = tl.where(exists & (leave > enter), (leave - enter) / n, 0.0)
    enter = tl.where(step > 0, enter, 0.0)
    sx, sy, sz = 0.5 * (w_size - 1), 0.5 * (h_size - 1), 0.5 * (d_size - 1)
    return ((ox + 1) * sx, (oy + 1) * sy, (oz + 1) * sz, dx * sx, dy * sy, dz * sz), enter, step


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
def _depth(i, t0, step, seed_term, first, STRATIFIED: tl.constexpr):
    """Depth of sample i: the centre of its bin, or a random point in it; `first` numbers a ray's samples."""
    offset = tl.zeros_like(t0) + 0.5
    if STRATIFIED:
        offset = _hash_uniform(seed_term, first + i)
    return t0 + (i + offset) * step


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
def forward_kernel(volume, origins, directions, bricks, colour, seen, far_off, near, far, r_count, area, width,
                   d_size, h_size, w_size, n, seed_term, stop, CAMERAS: tl.constexpr, STRATIFIED: tl.constexpr,
                   EARLY: tl.constexpr, SKIP: tl.constexpr, KEEP: tl.constexpr, RAYS: tl.constexpr,
                   BRICK: tl.constexpr):  # fmt: skip
    b = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * RAYS + tl.arange(0, RAYS)
    exists, ray = row < r_count, b * r_count + row
    volume, bricks = _object(b, volume, bricks, d_size, h_size, w_size, SKIP, BRICK)
    line, t0, step = _ray(origins, directions, ray, exists, near, far, area, width, n, d_size, h_size, w_size, CAMERAS)
    light, occupancy = tl.full((RAYS,), 1.0, tl.float32), tl.zeros((RAYS,), tl.float32)
    depth, sums = occupancy, tl.zeros((RAYS, 4), tl.float32)
    s0, s1, s2, s3, s4, s5, s6, s7 = sums, sums, sums, sums, sums, sums, sums, sums
    k0 = tl.full((RAYS,), -1, tl.int32)
    k1, k2, k3, k4, k5, k6, k7 = k0, k0, k0, k0, k0, k0, k0
    active, i = step > 0, 0
    running = tl.max(active.to(tl.int32), axis=0) > 0
    while running:
        t = _depth(i, t0, step, seed_term, ray * n, STRATIFIED)
        cell, k, fractions = _corners(line, t, d_size, h_size, w_size)
        wanted = active
        if SKIP:
            wanted = _in_brick(bricks, cell, d_size, h_size, w_size, active, BRICK)
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
        running = i < n
        if EARLY:
            active = active & (light >= stop)
            running = running & (tl.max(active.to(tl.int32), axis=0) > 0)
    _, red, green, blue = _channels(sums)
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
def backward_kernel(volume, origins, directions, bricks, colour, seen, far_off, g_colour, g_seen, g_far_off, grad,
                    near, far, r_count, area, width, d_size, h_size, w_size, n, seed_term, stop, colour_row, seen_row,
                    far_off_row, COLOUR: tl.constexpr, SEEN: tl.constexpr, FAR_OFF: tl.constexpr,
                    CAMERAS: tl.constexpr, STRATIFIED: tl.constexpr, EARLY: tl.constexpr, SKIP: tl.constexpr,
                    KEEP: tl.constexpr, RAYS: tl.constexpr, BRICK: tl.constexpr):  # fmt: skip
    b = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * RAYS + tl.arange(0, RAYS)
    exists, ray = row < r_count, b * r_count + row
    volume, bricks = _object(b, volume, bricks, d_size, h_size, w_size, SKIP, BRICK)
    grad += b * d_size * h_size * w_size * 4
    line, t0, step = _ray(origins, directions, ray, exists, near, far, area, width, n, d_size, h_size, w_size, CAMERAS)
    red, green, blue, occupancy, depth, later = _above(
        colour, seen, far_off, g_colour, g_seen, g_far_off, ray, exists, colour_row, seen_row, far_off_row,
        COLOUR, SEEN, FAR_OFF)  # fmt: skip
    light, zero = tl.full((RAYS,), 1.0, tl.float32), tl.zeros((RAYS, 4), tl.float32)
    s0, s1, s2, s3, s4, s5, s6, s7 = zero, zero, zero, zero, zero, zero, zero, zero
    g0, g1, g2, g3, g4, g5, g6, g7 = zero, zero, zero, zero, zero, zero, zero, zero
    k0 = tl.full((RAYS,), -1, tl.int32)
    k1, k2, k3, k4, k5, k6, k7 = k0, k0, k0, k0, k0, k0, k0
    active, i = step > 0, 0
    running = tl.max(active.to(tl.int32), axis=0) > 0
    while running:
        t = _depth(i, t0, step, seed_term, ray * n, STRATIFIED)
        cell, k, fractions = _corners(line, t, d_size, h_size, w_size)
        wanted = active
        if SKIP:
            wanted = _in_brick(bricks, cell, d_size, h_size, w_size, active, BRICK)
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
        running = i < n
        if EARLY:
            active = active & (light >= stop)
            running = running & (tl.max(active.to(tl.int32), axis=0) > 0)
    _add_all(grad, (k0, k1, k2, k3, k4, k5, k6, k7), (g0, g1, g2, g3, g4, g5, g6, g7), exists)
