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
