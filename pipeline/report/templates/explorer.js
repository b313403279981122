const [channels, height, width] = content.shape;
const floats = text => new Float32Array(Uint8Array.from(atob(text), letter => letter.charCodeAt(0)).buffer);
const element = id => document.getElementById(id);
const sigmoid = x => 1 / (1 + Math.exp(-x));
const softplus = x => Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x)));
const layers = (content.layers || []).map(
  layer => layer.kind === "linear" ? {weight: floats(layer.weight), bias: floats(layer.bias)} : layer);
const scale = content.likelihood.scale && floats(content.likelihood.scale);
const codes = floats(content.codes), count = content.places.length, dimensions = codes.length / count;
const prior = content.prior &&
  {upper: content.prior.upper, mean: floats(content.prior.mean), root: floats(content.prior.root)};

// The decoder

function dense({weight, bias}, x) {
  const y = new Float64Array(bias.length);
  for (let i = 0, k = 0; i < y.length; i++) {
    let sum = bias[i];
    for (let j = 0; j < x.length; j++) sum += weight[k++] * x[j];
    y[i] = sum;
  }
  return y;
}
const functions = {
  relu: x => x.map(v => Math.max(v, 0)), tanh: x => x.map(Math.tanh), sigmoid: x => x.map(sigmoid),
  silu: x => x.map(v => v * sigmoid(v)),
  glu: x => x.subarray(0, x.length / 2).map((v, i) => v * sigmoid(x[x.length / 2 + i])),
};

// erf, Abramowitz & Stegun 7.1.26: within 1.5e-7
function erf(x) {
  const t = 1 / (1 + 0.3275911 * Math.abs(x));
  const series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))));
  return Math.sign(x) * (1 - series * Math.exp(-x * x));
}
function truncated(x) {
  const sigma = content.likelihood.sigma, wide = Math.SQRT2 * sigma;
  const bell = edge => Math.exp(-0.5 * (edge / sigma) ** 2);
  const mass = 0.5 * (erf(x / wide) + erf((1 - x) / wide));
  return x + sigma * (bell(x) - bell(1 - x)) / (Math.sqrt(2 * Math.PI) * mass);
}
// the expected pixel for the decoder's output at place i
const means = {
  bernoulli: sigmoid, gaussian: x => x, truncated,
  continuous: x => Math.abs(x) < 0.01 ? 0.5 + x / 12 : -1 / Math.expm1(-x) - 1 / x,
  logistic: (x, i) => {
    const s = scale[scale.length > 1 ? i : 0];
    return s * (softplus(x / s) - softplus((x - 1) / s));
  },
};
function decode(z) {
  const apply = (x, layer) => layer.weight ? dense(layer, x) : functions[layer.kind](x);
  const output = layers.reduce(apply, Float64Array.from(z));
  return output.map((x, i) => Math.min(Math.max(means[content.likelihood.kind](x, i), 0), 1));
}

// Pictures by latents: by the decoder here, or by the server that the page comes from

async function ask(path, body) {
  const away = () => { throw new Error("the server does not answer: start vaeline explore again"); };
  const answer = await fetch(path, {method: "POST", body}).catch(away), found = await answer.json();
  if (!answer.ok) throw new Error(found.error);
  return found;
}
const say = text => { element("error").textContent = text; };
const report = work => work.then(() => say(""), error => say(error.message));
const decodeAll = async latents =>
  content.remote ? ask("decode", JSON.stringify(latents.map(z => [...z]))) : latents.map(decode);
const tickets = {};
async function draw(name, latents, canvases) { // an answer that a later one has overtaken is dropped
  const ticket = tickets[name] = (tickets[name] || 0) + 1, pictures = decodeAll(latents);
  await report(pictures);
  if (ticket === tickets[name]) (await pictures).forEach((pixels, i) => show(canvases[i], pixels));
}

// The prior

function generator(seed) { // mulberry32 for uniform numbers, Box and Muller for normal ones
  const uniform = () => {
    seed = seed + 0x6D2B79F5 | 0;
    let t = Math.imul(seed ^ seed >>> 15, 1 | seed);
    t = t + Math.imul(t ^ t >>> 7, 61 | t) ^ t;
    return ((t ^ t >>> 14) >>> 0) / 4294967296;
  };
  return {uniform, normal: () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform())};
}
function drawn(random, temperature) {
  if (!prior) return Float64Array.from({length: dimensions}, () => temperature * random.normal());
  const u = random.uniform(), found = prior.upper.findIndex(bound => u < bound);
  const first = (found < 0 ? prior.upper.length - 1 : found) * dimensions;
  const noise = Float64Array.from({length: dimensions}, () => temperature * random.normal());
  const full = prior.root.length > prior.mean.length; // matrices, not deviations
  const offset = (i, row) => full ? noise.reduce((sum, value, j) => sum + prior.root[row * dimensions + j] * value, 0)
    : prior.root[row] * noise[i];
  return noise.map((_, i) => prior.mean[first + i] + offset(i, first + i));
}

// Pictures

function show(canvas, pixels) {
  [canvas.width, canvas.height] = [width, height];
  const picture = new ImageData(width, height), plane = width * height, colour = channels < 3 ? 0 : plane;
  for (let i = 0; i < plane; i++) {
    for (let c = 0; c < 3; c++) picture.data[4 * i + c] = Math.round(255 * pixels[i + c * colour]);
    picture.data[4 * i + 3] = 255;
  }
  canvas.getContext("2d").putImageData(picture, 0, 0);
}
const atlas = new Image(), own = []; // test images, and after them the user's: code, pixels, words
function showImage(canvas, i) {
  if (i >= count) return show(canvas, own[i - count].pixels);
  [canvas.width, canvas.height] = [width, height];
  const x = i % content.columns * width, y = Math.floor(i / content.columns) * height;
  canvas.getContext("2d").drawImage(atlas, x, y, width, height, 0, 0, width, height);
}
const make = (parent, tag, properties = {}) => parent.appendChild(Object.assign(document.createElement(tag), properties));

// Samples

const state = {image: 0, z: null, samples: [], weights: [1 / 3, 1 / 3, 1 / 3], corners: [0, 1, 2].map(i => i % count)};
const samples = Array.from({length: 20}, (_, i) => make(element("samples"), "canvas", {ariaLabel: `sample ${i + 1}`}));
function sample() {
  const random = generator(Number(element("seed").value)), temperature = Number(element("temperature").value);
  element("temperature").nextElementSibling.value = temperature.toFixed(2);
  state.samples = samples.map(() => drawn(random, temperature));
  draw("samples", state.samples, samples);
}
element("seed").oninput = element("temperature").oninput = sample;
element("next").onclick = () => { element("seed").value = Number(element("seed").value) + 1; sample(); };

// The mixture

const code = i => i < count ? codes.subarray(i * dimensions, (i + 1) * dimensions) : own[i - count].code;
const vertices = [[60, 12], [10, 98], [110, 98]]; // of the triangle, in its own units
const weighted = values => state.weights.reduce((sum, weight, k) => sum + weight * values(k), 0);
const handle = () => [0, 1].map(axis => weighted(k => vertices[k][axis]));
const corners = ["A", "B", "C"].map((letter, corner) => {
  const title = `put the chosen image at ${letter}`;
  const button = make(element("corners"), "button", {type: "button", className: "corner", title});
  button.onclick = () => { state.corners[corner] = state.image; mix(); };
  return {canvas: make(button, "canvas"), share: make(button, "span"), letter};
});
function mix() {
  const z = Float64Array.from({length: dimensions}, (_, d) => weighted(k => code(state.corners[k])[d]));
  draw("mixture", [z], [element("mixture")]);
  const [x, y] = handle(), point = element("triangle").querySelector("circle");
  point.setAttribute("cx", x);
  point.setAttribute("cy", y);
  corners.forEach(({canvas, share, letter}, k) => {
    showImage(canvas, state.corners[k]);
    share.textContent = `${letter} ${(100 * state.weights[k]).toFixed(0)}%`;
  });
  element("triangle").setAttribute("aria-valuetext", corners.map(({share}) => share.textContent).join(", "));
}
function weigh(x, y) { // barycentric coordinates, cut off at the edges
  const [[ax, ay], [bx, by], [cx, cy]] = vertices, area = (by - cy) * (ax - cx) + (cx - bx) * (ay - cy);
  const a = ((by - cy) * (x - cx) + (cx - bx) * (y - cy)) / area;
  const b = ((cy - ay) * (x - cx) + (ax - cx) * (y - cy)) / area;
  const kept = [a, b, 1 - a - b].map(w => Math.max(w, 0)), sum = kept.reduce((p, w) => p + w);
  state.weights = kept.map(w => w / sum);
  mix();
}
const dragged = (target, move) => {
  target.onpointerdown = event => { target.setPointerCapture(event.pointerId); move(event); };
  target.onpointermove = event => { if (event.buttons) move(event); };
};
dragged(element("triangle"), event => {
  const box = element("triangle").getBoundingClientRect();
  weigh((event.clientX - box.left) / box.width * 120, (event.clientY - box.top) / box.height * 112);
});
element("triangle").onkeydown = event => {
  const step = {ArrowLeft: [-4, 0], ArrowRight: [4, 0], ArrowUp: [0, -4], ArrowDown: [0, 4]}[event.key];
  if (!step) return;
  event.preventDefault();
  weigh(handle()[0] + step[0], handle()[1] + step[1]);
};

// The map and the dimensions

const colours = [
  "#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#a0705f", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf"];
const hue = label => label < colours.length ? colours[label] : `hsl(${label * 137.5 % 360} 60% 50%)`;
const reach = 1.05 * Math.max(...content.places.flat().map(Math.abs), 1e-9), map = element("map");
const spot = i => content.places[i].map((v, axis) => (0.5 + (axis ? -v : v) / reach / 2) * map.width);
const className = label => content.classes ? content.classes[label] : label;
for (const label of [...new Set(content.labels)].sort((a, b) => a - b)) {
  const entry = make(element("legend"), "span");
  make(entry, "i").style.background = hue(label);
  entry.append(className(label));
}
function drawMap() {
  const context = map.getContext("2d");
  context.clearRect(0, 0, map.width, map.height);
  const dot = (i, radius) => { context.beginPath(); context.arc(...spot(i), radius, 0, 7); };
  for (let i = 0; i < count; i++) {
    dot(i, 8);
    context.fillStyle = hue(content.labels ? content.labels[i] : 0);
    context.fill();
  }
  if (state.image >= count) return; // the user's own is not on the map
  dot(state.image, 15);
  [context.lineWidth, context.strokeStyle] = [5, getComputedStyle(document.body).color];
  context.stroke();
}
const sliders = content.axes.map(axis => {
  const label = make(element("sliders"), "label", {textContent: `z${axis.dimension}, ${axis.label}`});
  const input = make(label, "input", {type: "range", min: -3, max: 3, step: 0.05}), output = make(label, "output");
  input.oninput = () => {
    state.z[axis.dimension] = axis.centre + axis.spread * Number(input.value);
    output.value = Number(input.value).toFixed(2);
    draw("changed", [state.z], [element("changed")]);
  };
  return {axis, input, output};
});
const about = i => i >= count ? own[i - count].words : content.labels ? `class: ${className(content.labels[i])}` : "";
function choose(i) {
  [state.image, state.z] = [i, Float64Array.from(code(i))];
  for (const {axis, input, output} of sliders) {
    const value = (state.z[axis.dimension] - axis.centre) / axis.spread;
    [input.value, output.value] = [value, value.toFixed(2)];
  }
  showImage(element("original"), i);
  for (const id of ["reconstruction", "changed"]) draw(id, [state.z], [element(id)]);
  if (i < count) element("image").value = element("image").nextElementSibling.value = i;
  element("name").textContent = about(i);
  drawMap();
}
dragged(map, event => {
  const box = map.getBoundingClientRect(), unit = map.width / box.width;
  const [x, y] = [unit * (event.clientX - box.left), unit * (event.clientY - box.top)];
  const far = i => Math.hypot(spot(i)[0] - x, spot(i)[1] - y);
  choose(content.places.reduce((best, _, i) => far(i) < far(best) ? i : best, 0));
});
element("image").oninput = () => choose(Number(element("image").value));
element("reset").onclick = () => choose(state.image);
if (content.remote) element("file").onchange = element("fit").onchange = () => {
  const [file] = element("file").files;
  if (file) report(ask(`image?fit=${element("fit").value}`, file).then(found => {
    own.push({...found, words: `${file.name}: ${found.words}`});
    choose(count + own.length - 1);
  }));
};
matchMedia("(prefers-color-scheme: dark)").onchange = drawMap;
atlas.onload = () => { sample(); mix(); choose(0); };
atlas.src = `data:image/png;base64,${content.atlas}`;
