// A payload of vader/report/viewer/payload.py becomes what the shader samples.

// Bytes of base64 text, inflated.
async function inflate(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// The largest of each value (w * h * d of them) and its neighbours, those at corners too: one axis after another.
function spread(values, [w, h, d]) {
  let from = values;
  for (const [stride, length] of [[1, w], [w, h], [w * h, d]]) {
    const to = from.slice();
    for (let i = 0; i < from.length; i++) {
      const place = Math.floor(i / stride) % length;
      if (place > 0) to[i] = Math.max(to[i], from[i - stride]);
      if (place < length - 1) to[i] = Math.max(to[i], from[i + stride]);
    }
    from = to;
  }
  return from;
}

// Cells between voxels, one fewer along each axis: how many cells (diagonal steps count as one) the nearest cell with
// an occupied corner is away, at most `most`.
function emptiness(codes, [w, h, d], most = 250) {
  const [cw, ch, cd] = [w - 1, h - 1, d - 1];
  const away = new Uint8Array(cw * ch * cd);
  let i = 0;
  for (let z = 0; z < cd; z++) for (let y = 0; y < ch; y++) for (let x = 0, v = (z * h + y) * w; x < cw; x++, v++, i++) {
    const u = v + w * h;
    const occupied = codes[v] | codes[v + 1] | codes[v + w] | codes[v + w + 1]
      | codes[u] | codes[u + 1] | codes[u + w] | codes[u + w + 1];
    away[i] = occupied ? 0 : most;
  }
  // Two sweeps, there and back, each looking at the half of the 26 neighbours that it has passed.
  const passed = [];
  for (let dz = -1; dz <= 0; dz++) for (let dy = -1; dy <= 1; dy++) for (let dx = -1; dx <= 1; dx++) {
    if (dz < 0 || dy < 0 || (dy === 0 && dx < 0)) passed.push([dx, dy, dz, (dz * ch + dy) * cw + dx]);
  }
  const look = (x, y, z, at, sign) => {
    let least = away[at];
    if (least === 0) return;
    for (const [dx, dy, dz, offset] of passed) {
      const [nx, ny, nz] = [x + sign * dx, y + sign * dy, z + sign * dz];
      if (nx >= 0 && nx < cw && ny >= 0 && ny < ch && nz >= 0 && nz < cd) least = Math.min(least, away[at + sign * offset] + 1);
    }
    away[at] = least;
  };
  i = 0;
  for (let z = 0; z < cd; z++) for (let y = 0; y < ch; y++) for (let x = 0; x < cw; x++) look(x, y, z, i++, 1);
  for (let z = cd; z-- > 0;) for (let y = ch; y-- > 0;) for (let x = cw; x-- > 0;) look(x, y, z, --i, -1);
  return away;
}

// Everything the renderer uploads of a crop: colours with sigma (RGBA), the cells' emptiness, and where it lies.
async function unpack(payload) {
  const { grid, crop, start, density: [floor, scale], colour } = payload;
  const data = await inflate(payload.data);
  const count = crop[0] * crop[1] * crop[2];
  const codes = data.subarray(0, count);
  const densities = Float32Array.from({ length: 256 }, (_, code) => floor * Math.expm1(code * scale));
  const near = spread(codes, crop);
  const field = new Float32Array(4 * count);
  for (let i = 0; i < count; i++) field[4 * i + 3] = densities[codes[i]];
  let next = count;
  colour.forEach(([low, high], channel) => {
    for (let i = 0, value = 0; i < count; i++) {
      if (!near[i]) continue;
      value = (value + data[next++]) & 255;
      field[4 * i + channel] = low + ((high - low) / 255) * value;
    }
  });
  if (next !== data.length) throw new Error(`its data are ${data.length} bytes, expected ${next}`);
  const voxel = grid.map((n) => 2 / (n - 1));
  const origin = start.map((first, axis) => -1 + first * voxel[axis]);
  return { grid, crop, start, voxel, origin, near, field, empty: emptiness(codes, crop), isEmpty: scale === 0 };
}

// Unit normals -grad(sigma) / |grad(sigma)| at the crop's voxels, with sigma (RGBA): central differences inside the
// whole grid, one-sided on its faces, as `normal_volume` takes them. Away from what is occupied they are 0.
function normals({ field, near, crop, grid, start }) {
  const result = new Float32Array(field.length);
  const strides = [1, crop[0], crop[0] * crop[1]], slope = [0, 0, 0];
  for (let i = 0; i < near.length; i++) {
    if (!near[i]) continue;
    for (let axis = 0; axis < 3; axis++) {
      const at = 4 * i + 3, stride = 4 * strides[axis];
      const place = Math.floor(i / strides[axis]) % crop[axis];
      const lower = place + start[axis] > 0, upper = place + start[axis] < grid[axis] - 1;
      const below = lower ? (place > 0 ? field[at - stride] : 0) : field[at];
      const above = upper ? (place < crop[axis] - 1 ? field[at + stride] : 0) : field[at];
      slope[axis] = (above - below) / (lower + upper);
    }
    const norm = Math.max(Math.hypot(...slope), 1e-8);
    for (let axis = 0; axis < 3; axis++) result[4 * i + axis] = -slope[axis] / norm;
    result[4 * i + 3] = field[4 * i + 3];
  }
  return result;
}
