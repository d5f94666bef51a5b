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

// The volume on a canvas with WebGL 2: textures, one triangle that covers it, and march.glsl for each of its pixels.

const MODES = ["colour", "depth", "normals"];
const REACH = 1.2;  // depths are shown from this far before the centre (bright) to this far behind it (dark)

class Renderer {
  // Throws where the browser has no WebGL 2.
  constructor(canvas, shader) {
    this.canvas = canvas;
    const gl = canvas.getContext("webgl2", { alpha: false, antialias: false, depth: false, powerPreference: "high-performance" });
    if (!gl) throw new Error("this browser has no WebGL 2");
    this.gl = gl;
    const program = gl.createProgram();
    const corner = "#version 300 es\nvoid main() { gl_Position = vec4(gl_VertexID == 1 ? 3 : -1, gl_VertexID == 2 ? 3 : -1, 0, 1); }";
    for (const [kind, source] of [[gl.VERTEX_SHADER, corner], [gl.FRAGMENT_SHADER, shader]]) {
      const part = gl.createShader(kind);
      gl.shaderSource(part, source);
      gl.compileShader(part);
      gl.attachShader(program, part);
    }
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS)) {
      const parts = gl.getAttachedShaders(program).map((part) => gl.getShaderInfoLog(part));
      throw new Error(`the shader was refused: ${[gl.getProgramInfoLog(program), ...parts].join(" ")}`);
    }
    gl.useProgram(program);
    this.place = (name) => gl.getUniformLocation(program, name);
    ["field", "empty"].forEach((name, unit) => gl.uniform1i(this.place(name), unit));
    this.textures = {};
  }

  texture(name, internal, format, type, [width, height, depth], values, filter) {
    const gl = this.gl;
    gl.deleteTexture(this.textures[name] ?? null);
    this.textures[name] = gl.createTexture();
    gl.bindTexture(gl.TEXTURE_3D, this.textures[name]);
    gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
    gl.texImage3D(gl.TEXTURE_3D, 0, internal, width, height, depth, 0, format, type, values);
    for (const side of ["S", "T", "R"]) gl.texParameteri(gl.TEXTURE_3D, gl[`TEXTURE_WRAP_${side}`], gl.CLAMP_TO_EDGE);
    for (const size of ["MIN", "MAG"]) gl.texParameteri(gl.TEXTURE_3D, gl[`TEXTURE_${size}_FILTER`], filter);
  }

  // Take the volume that `unpack` made.
  load(volume) {
    const gl = this.gl;
    this.volume = volume;
    const cells = volume.crop.map((n) => n - 1);
    this.texture("colour", gl.RGBA16F, gl.RGBA, gl.FLOAT, volume.crop, volume.field, gl.LINEAR);
    this.texture("empty", gl.R8UI, gl.RED_INTEGER, gl.UNSIGNED_BYTE, cells, volume.empty, gl.NEAREST);
    this.hasNormals = false;
    gl.uniform3fv(this.place("origin"), volume.origin);
    gl.uniform3fv(this.place("voxel"), volume.voxel);
    gl.uniform3fv(this.place("cells"), cells);
  }

  // Draw size x size pixels. pose: azimuth and elevation in degrees, distance; look: mode, threshold; lens: field of
  // view in degrees; samples: per ray. Returns the milliseconds that it took.
  draw(pose, look, lens, samples, size) {
    const gl = this.gl, began = performance.now();
    if (this.canvas.width !== size) this.canvas.width = this.canvas.height = size;
    gl.viewport(0, 0, size, size);
    const { eye, axes } = camera(pose);
    gl.uniform3fv(this.place("eye"), eye);
    gl.uniformMatrix3fv(this.place("axes"), false, axes);
    gl.uniform1f(this.place("size"), size);
    gl.uniform1f(this.place("focal"), size / 2 / Math.tan((lens / 2) * RADIANS));
    gl.uniform1i(this.place("samples"), samples);
    gl.uniform1i(this.place("mode"), MODES.indexOf(look.mode));
    gl.uniform1f(this.place("threshold"), look.threshold);
    gl.uniform2f(this.place("range"), pose.distance - REACH, pose.distance + REACH);
    const shown = look.mode === "normals" ? "normals" : "colour";
    if (shown === "normals" && !this.hasNormals) {
      this.texture("normals", gl.RGBA16F, gl.RGBA, gl.FLOAT, this.volume.crop, normals(this.volume), gl.LINEAR);
      this.hasNormals = true;
    }
    [shown, "empty"].forEach((name, unit) => {
      gl.activeTexture(gl.TEXTURE0 + unit);
      gl.bindTexture(gl.TEXTURE_3D, this.textures[name]);
    });
    gl.drawArrays(gl.TRIANGLES, 0, 3);
    gl.readPixels(0, 0, 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, new Uint8Array(4));  // waits until it is drawn
    return performance.now() - began;
  }

  // The picture just drawn, RGBA from the bottom row up; only in the task that drew it.
  pixels() {
    const gl = this.gl, pixels = new Uint8Array(4 * this.canvas.width * this.canvas.height);
    gl.readPixels(0, 0, this.canvas.width, this.canvas.height, gl.RGBA, gl.UNSIGNED_BYTE, pixels);
    return pixels;
  }
}

const RADIANS = Math.PI / 180;

// The eye in the world, and the camera's axes right, down and forward: it looks at the origin with y up.
function camera({ azimuth, elevation, distance }) {
  const [a, e] = [azimuth * RADIANS, elevation * RADIANS];
  const back = [Math.sin(a) * Math.cos(e), Math.sin(e), Math.cos(a) * Math.cos(e)];
  const right = [Math.cos(a), 0, -Math.sin(a)];
  const down = [Math.sin(a) * Math.sin(e), -Math.cos(e), Math.cos(a) * Math.sin(e)];
  return { eye: back.map((x) => distance * x), axes: [...right, ...down, ...back.map((x) => -x)] };
}

// The page: which object is shown, from where and how; mouse, touch, keys and buttons turn it.

const SETTLE = 25;            // milliseconds without input after which the full picture is drawn
const FRAME = 30;             // milliseconds that a picture may take while it moves
const SIZES = [96, 128, 192, 256, 384, 512];  // of pictures while it moves; the last is the least of one at rest
const LARGER = [1024, 768];   // at rest, on a screen that has room for it and a graphics card that is quick
const STEP = 5;               // degrees of a key
const TURN = 24;              // degrees a second
const NARROW = 89;            // degrees of elevation: straight up and down fix no orientation

const element = (id) => document.getElementById(id);
const clamp = (x, low, high) => Math.min(Math.max(x, low), high);

// A payload that lies beside the page: a script leaves it, since a page from a disk may read no data.
function beside(address) {
  return new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = address;
    script.addEventListener("load", () => {
      const found = window.payloads?.[address];
      found ? resolve(found) : reject(new Error(`${address} holds no volume`));
    });
    script.addEventListener("error", () => reject(new Error(`its file ${address} is not there`)));
    document.head.append(script);
  });
}

class Viewer {
  constructor(objects) {
    this.objects = objects;
    this.look = { mode: "colour", threshold: 0 };
    this.cost = 1e-4;         // milliseconds a pixel, a running mean
    this.frames = [];         // [when, size, milliseconds] of the latest pictures
    this.canvas = element("canvas");
    this.links = [...document.querySelectorAll("#objects a")];
    this.start();
    this.listen();
    const asked = /^#object-(\d+)$/.exec(location.hash);
    this.shown = this.show(asked ? Number(asked[1]) - 1 : 0);
  }

  // A renderer, or the sentence that stands in for one.
  start() {
    this.renderer = null;
    try {
      if (typeof DecompressionStream === "undefined") throw new Error("this browser cannot inflate data");
      this.renderer = new Renderer(this.canvas, element("shader").textContent);
      this.blocked = "";
    } catch (error) {
      this.blocked = `A still picture: ${error.message}, which turning the object takes.`;
    }
    element("controls").disabled = Boolean(this.blocked);
  }

  // Show an object by its place in the list; resolves when its first picture is drawn.
  async show(index) {
    this.index = clamp(index, 0, this.objects.length - 1) || 0;
    const object = (this.object = this.objects[this.index]);
    this.pose = { ...object.camera };
    this.links.forEach((link, i) => (i === this.index ? link.setAttribute("aria-current", "true") : link.removeAttribute("aria-current")));
    element("still").src = this.links[this.index].querySelector("img").src;
    element("still").alt = `${object.name}, a still picture`;
    element("name").textContent = object.name;
    element("caption").textContent = object.caption;
    element("facts").textContent = `${object.grid.join(" × ")} voxels, ${object.samples} samples a ray, ${object.kilobytes} KB`;
    const download = element("download");
    download.hidden = !object.glb;
    if (object.glb) Object.assign(download, { href: object.glb, download: object.file });
    this.ready(false);
    this.notice(this.blocked);
    if (this.blocked) return;
    try {
      object.payload ??= await beside(object.script);
      const volume = await unpack(object.payload);
      if (this.object !== object) return;  // another was asked for meanwhile
      this.renderer.load(volume);
      this.notice(volume.isEmpty ? "This volume is empty: its density is 0 everywhere." : "");
      this.setThreshold();
      this.settle();
      this.ready(true);
    } catch (error) {
      this.notice(`This object cannot be drawn: ${error.message}.`);
      throw error;
    }
  }

  ready(yes) {
    this.drawable = yes;
    element("frame").classList.toggle("ready", yes);
  }

  notice(text) {
    element("notice").textContent = text;
    element("notice").hidden = !text;
  }

  draw(size, pose = this.pose) {
    const took = this.renderer.draw(pose, this.look, this.object.lens, this.object.samples, size);
    this.cost += 0.4 * (took / size ** 2 - this.cost);
    this.frames = [...this.frames.slice(-199), [performance.now(), size, took]];
  }

  // The picture while it moves: as large as can be drawn in time.
  move() {
    this.moved = performance.now();
    if (this.drawable && !this.pending) this.pending = requestAnimationFrame((now) => this.tick(now));
  }

  tick(now) {
    this.pending = 0;
    if (!this.drawable) return;
    if (this.turning) {
      this.pose.azimuth -= TURN * clamp((now - this.turning) / 1000, 0, 0.1);
      this.turning = now;
    }
    const drawn = this.drawnFor === this.moved;
    if (!this.turning && drawn && performance.now() - this.moved >= SETTLE) return this.settle();
    if (this.turning || !drawn) {
      this.drawnFor = this.moved;
      this.draw(SIZES.findLast((size) => this.cost * size ** 2 <= FRAME) ?? SIZES[0]);
    }
    this.pending = requestAnimationFrame((next) => this.tick(next));
  }

  // The full picture, and where one stands in words.
  settle() {
    const room = this.canvas.clientWidth * devicePixelRatio;
    this.draw(LARGER.find((size) => size <= room && this.cost * size ** 2 <= FRAME) ?? SIZES.at(-1));
    const { azimuth, elevation, distance } = this.pose;
    const degrees = (angle) => `${Math.round(((angle % 360) + 360) % 360)}°`;
    const words = `azimuth ${degrees(azimuth)}, elevation ${Math.round(elevation)}°, distance ${distance.toFixed(1)}`;
    element("where").textContent = words;
    this.canvas.setAttribute("aria-label", `${this.object.name}, ${this.look.mode}, ${words}`);
  }

  // Turn the object by degrees to the right and downwards, and come closer by a factor.
  turn(right, down, closer = 1) {
    const home = this.object.camera.distance;
    this.pose.azimuth -= right;
    this.pose.elevation = clamp(this.pose.elevation + down, -NARROW, NARROW);
    this.pose.distance = clamp(this.pose.distance / closer, 0.4 * home, 2.5 * home);
    this.move();
  }

  home() {
    this.pose = { ...this.object.camera };
    this.move();
  }

  setThreshold() {
    if (!this.object.payload) return;  // it is still on its way
    const code = Number(element("threshold").value), [floor, scale] = this.object.payload.density;
    this.look.threshold = code && floor * Math.expm1(code * scale);
    const text = this.look.threshold ? `surface at σ = ${this.look.threshold.toPrecision(2)}` : "off";
    element("level").textContent = text;
    element("threshold").setAttribute("aria-valuetext", text);
  }

  setTurning(yes) {
    this.turning = yes ? performance.now() : 0;
    element("turn").setAttribute("aria-pressed", String(yes));
    this.move();
  }

  listen() {
    this.links.forEach((link, index) => link.addEventListener("click", (event) => {
      event.preventDefault();  // in a frame without an address of its own, the link would lead out of it
      if (location.protocol !== "about:") history.replaceState(null, "", link.hash);
      this.shown = this.show(index);
    }));
    for (const radio of document.querySelectorAll("input[name=mode]")) {
      radio.addEventListener("change", () => { this.look.mode = radio.value; this.move(); });
    }
    element("threshold").addEventListener("input", () => { this.setThreshold(); this.move(); });
    element("turn").addEventListener("click", () => this.setTurning(!this.turning));
    const still = matchMedia("(prefers-reduced-motion: reduce)");
    const heed = () => {
      element("turn").disabled = still.matches;
      element("calm").hidden = !still.matches;
      if (still.matches && this.turning) this.setTurning(false);
    };
    still.addEventListener("change", heed);
    heed();
    for (const button of document.querySelectorAll("button[data-key]")) {
      button.addEventListener("click", () => this.key(button.dataset.key));
    }
    this.canvas.addEventListener("keydown", (event) => {
      if (!event.ctrlKey && !event.metaKey && !event.altKey && this.key(event.key)) event.preventDefault();
    });
    this.canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.turn(0, 0, Math.exp(-0.0015 * event.deltaY * (event.deltaMode === 1 ? 30 : 1)));
    }, { passive: false });
    this.listenToPointers();
    this.canvas.addEventListener("webglcontextlost", (event) => {
      event.preventDefault();
      this.ready(false);
      this.notice("A still picture: the browser has taken back the graphics memory. Choose the object to draw it again.");
    });
    this.canvas.addEventListener("webglcontextrestored", () => {
      this.start();
      this.shown = this.show(this.index);
    });
  }

  // One pointer turns, two come closer.
  listenToPointers() {
    const held = new Map();
    const apart = () => {
      const [a, b] = [...held.values()];
      return Math.max(Math.hypot(a.x - b.x, a.y - b.y), 1);
    };
    this.canvas.addEventListener("pointerdown", (event) => {
      this.canvas.setPointerCapture(event.pointerId);
      held.set(event.pointerId, { x: event.clientX, y: event.clientY });
    });
    this.canvas.addEventListener("pointermove", (event) => {
      const from = held.get(event.pointerId);
      if (!from) return;
      const to = { x: event.clientX, y: event.clientY }, before = held.size === 2 && apart();
      held.set(event.pointerId, to);
      const degrees = 180 / this.canvas.clientWidth;
      if (held.size === 1) this.turn(degrees * (to.x - from.x), degrees * (to.y - from.y));
      if (held.size === 2) this.turn(0, 0, apart() / before);
    });
    for (const end of ["pointerup", "pointercancel"]) this.canvas.addEventListener(end, (event) => held.delete(event.pointerId));
  }

  // What a key does; whether it does anything.
  key(name) {
    const actions = {
      ArrowLeft: () => this.turn(-STEP, 0),
      ArrowRight: () => this.turn(STEP, 0),
      ArrowUp: () => this.turn(0, -STEP),
      ArrowDown: () => this.turn(0, STEP),
      "+": () => this.turn(0, 0, 1.1),
      "=": () => this.turn(0, 0, 1.1),
      "-": () => this.turn(0, 0, 1 / 1.1),
      Home: () => this.home(),
    };
    if (Object.hasOwn(actions, name)) actions[name]();
    return Object.hasOwn(actions, name);
  }
}

window.viewer = new Viewer(JSON.parse(element("data").textContent));
