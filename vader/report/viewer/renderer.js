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
