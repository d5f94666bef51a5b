#version 300 es
// Eq. 6-7 along one ray a pixel, sample by sample as vader.rendering.reference does: bin centres between the ray's
// entry into [-1, 1]^3 and its exit, trilinear values with voxel centres on the faces, alpha = 1 - exp(-sigma step).
// Samples in cells whose eight corners are empty are skipped, which changes nothing.
precision highp float;
precision highp sampler3D;
precision highp usampler3D;

uniform sampler3D field;      // the crop's voxels: colour or normal, and sigma
uniform usampler3D empty;     // cells between voxels: how many cells away the nearest occupied one is, 0 if it is this
uniform vec3 origin, voxel;   // the crop's first voxel in the world, and the distance between voxels
uniform vec3 cells;           // cells of the crop along each axis: voxels - 1
uniform vec3 eye;
uniform mat3 axes;            // the camera's right, down and forward in the world
uniform float size, focal;    // of the square picture in pixels
uniform int samples;          // per ray
uniform int mode;             // 0 colour, 1 depth, 2 normals
uniform float threshold;      // 0: the radiance field; else the surface where the density first reaches this
uniform vec2 range;           // depths that are drawn brightest and darkest
out vec4 result;

const float STOP = 1e-4;      // as evaluation: a ray ends where less than this share of its light is left

float largest(vec3 v) { return max(v.x, max(v.y, v.z)); }
float smallest(vec3 v) { return min(v.x, min(v.y, v.z)); }

vec4 fieldAt(vec3 grid) { return texture(field, (grid + 0.5) / (cells + 1.0)); }  // at voxel coordinates

// Composited colour or normal, occupancy and depth of the samples first..last; the grid coordinate of depth t is at + t * along.
void march(vec3 at, vec3 along, float enter, float bin, int first, int last, out vec3 sum, out float seen, out float far) {
  vec3 inverse = 1.0 / along;
  float light = 1.0, before = 0.0, previous = enter;
  sum = vec3(0.0); seen = 0.0; far = 0.0;
  for (int i = first; i <= last;) {
    float t = enter + (float(i) + 0.5) * bin;
    vec3 grid = at + t * along, cell = clamp(floor(grid), vec3(0.0), cells - 1.0);
    float away = float(texelFetch(empty, ivec3(cell), 0).r);
    if (away > 0.0) {  // all cells that are nearer than the nearest occupied one are empty: go to their end
      vec3 end = cell + mix(vec3(1.0 - away), vec3(away), greaterThan(along, vec3(0.0)));
      i = max(i + 1, int(ceil((smallest((end - at) * inverse) - enter) / bin - 0.5)));
      before = 0.0;
      previous = t;
      continue;
    }
    vec4 value = fieldAt(grid);
    float sigma = value.a;
    if (threshold > 0.0) {
      if (sigma >= threshold) {
        t = mix(max(previous, t - bin), t, (threshold - before) / (sigma - before));
        sum = fieldAt(at + t * along).rgb; seen = 1.0; far = t;
        return;
      }
      before = sigma;
      previous = t;
    } else if (sigma > 0.0) {
      float left = exp(-sigma * bin), weight = light * (1.0 - left);
      sum += weight * value.rgb;
      seen += weight;
      far += weight * t;
      light *= left;
      if (light < STOP) return;
    }
    i++;
  }
}

void main() {
  vec2 pixel = vec2(gl_FragCoord.x, size - gl_FragCoord.y) - 0.5 * size;
  vec3 direction = normalize(axes * vec3(pixel / focal, 1.0));
  direction = mix(direction, vec3(1e-9), lessThan(abs(direction), vec3(1e-9)));
  vec3 inverse = 1.0 / direction;

  vec3 a = (-1.0 - eye) * inverse, b = (1.0 - eye) * inverse;
  float enter = max(largest(min(a, b)), 0.0), leave = smallest(max(a, b));
  float bin = (leave - enter) / float(samples);
  a = (origin - eye) * inverse, b = (origin + cells * voxel - eye) * inverse;
  float from = max(largest(min(a, b)), enter), to = min(smallest(max(a, b)), leave);
  result = vec4(0.0, 0.0, 0.0, 1.0);
  if (to <= from) return;

  vec3 sum; float seen, far;
  int first = max(0, int(ceil((from - enter) / bin - 0.5)));
  int last = min(samples - 1, int(floor((to - enter) / bin - 0.5)));
  march((eye - origin) / voxel, direction / voxel, enter, bin, first, last, sum, seen, far);

  if (mode == 0) result.rgb = sum;
  if (mode == 1 && seen > 0.5) result.rgb = vec3(1.0 - 0.8 * clamp((far / seen - range.x) / (range.y - range.x), 0.0, 1.0));
  if (mode == 2) result.rgb = 0.5 * (sum + 1.0) * seen;
}
