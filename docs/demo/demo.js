// Enlarges a photograph by exported files of the packaged ASRN x4, one for each depth.
//
// vendor/ and models/ are made by `make demo-page`. Everything is relative to this page.
const SCALE = 4;
const DEPTHS = [1, 2, 3, 4, 5];
// A tile and what is seen around it, in pixels of the photograph. The deepest net looks 2 + 5 x 4 + 2
// pixels far, since a block's four 3x3 convolutions follow each other.
const TILE = 192;
const MARGIN = 24;

const elements = Object.fromEntries(
  ["drop", "file", "depth", "depth-shown", "split", "split-shown", "status", "before", "after"].map(
    (id) => [id, document.getElementById(id)],
  ),
);
const sessions = new Map(); // promises of sessions, by depth
const gpu = await navigator.gpu?.requestAdapter();
const provider = gpu ? "webgpu" : "wasm";
let ort = null; // ONNX Runtime Web, once it is loaded
let photograph = null; // {width, height, planes}: planes is RGB in 0..1, one colour after the other
let latestRun = 0; // a newer one makes an older one stop

const REMEDY = "`make demo-page` makes what this page needs.";

async function loadRuntime() {
  const address = `./vendor/ort.${provider}.min.mjs`;
  try {
    ort = await import(address);
  } catch (error) {
    throw new Error(`${address} cannot be loaded: ${REMEDY}`, { cause: error });
  }
  ort.env.wasm.wasmPaths = new URL("./vendor/", import.meta.url).href;
}

function sessionOf(depth) {
  if (!sessions.has(depth)) sessions.set(depth, load(depth));
  return sessions.get(depth);
}

async function load(depth) {
  const address = `./models/asrn_x4_d${depth}.onnx`;
  const answer = await fetch(new URL(address, import.meta.url));
  if (!answer.ok) throw new Error(`${address} cannot be loaded (${answer.status}): ${REMEDY}`);
  const bytes = new Uint8Array(await answer.arrayBuffer());
  return ort.InferenceSession.create(bytes, { executionProviders: [provider] });
}

// --- photographs

async function open(file) {
  const bitmap = await createImageBitmap(file, { colorSpaceConversion: "none" });
  const { width, height } = bitmap;
  const context = new OffscreenCanvas(width, height).getContext("2d");
  context.drawImage(bitmap, 0, 0);
  const { data } = context.getImageData(0, 0, width, height);
  const planes = new Float32Array(3 * width * height);
  for (let pixel = 0; pixel < width * height; pixel++) {
    for (let colour = 0; colour < 3; colour++) {
      planes[colour * width * height + pixel] = data[4 * pixel + colour] / 255;
    }
  }
  photograph = { width, height, planes };
  showBefore(bitmap);
  await enlarge();
}

// The browser's own enlargement, over the left part of the network's.
function showBefore(bitmap) {
  const { before } = elements;
  before.width = SCALE * bitmap.width;
  before.height = SCALE * bitmap.height;
  const context = before.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, before.width, before.height);
  showSplit();
}

function showSplit() {
  const { before, split } = elements;
  elements["split-shown"].value = `${split.value} %`;
  before.style.clipPath = `inset(0 ${100 - split.value}% 0 0)`;
}

// --- tiles

// The part of a photograph from (left, top), as a tensor (1, 3, height, width).
function cut({ width: rowLength, height: numRows, planes }, left, top, width, height) {
  const part = new Float32Array(3 * width * height);
  for (let colour = 0; colour < 3; colour++) {
    for (let row = 0; row < height; row++) {
      const start = (colour * numRows + top + row) * rowLength + left;
      part.set(planes.subarray(start, start + width), (colour * height + row) * width);
    }
  }
  return new ort.Tensor("float32", part, [1, 3, height, width]);
}

// The pixels of a prediction, of which (left, top) and what lies beyond the tile is margin.
function toImageData(prediction, left, top, width, height) {
  const [, , numRows, rowLength] = prediction.dims;
  const image = new ImageData(width, height);
  for (let row = 0; row < height; row++) {
    for (let column = 0; column < width; column++) {
      const to = 4 * (row * width + column);
      for (let colour = 0; colour < 3; colour++) {
        const from = (colour * numRows + top + row) * rowLength + left + column;
        image.data[to + colour] = Math.round(255 * prediction.data[from]); // clamps by itself
      }
      image.data[to + 3] = 255;
    }
  }
  return image;
}

async function enlarge() {
  if (photograph === null) return;
  const run = ++latestRun;
  const depth = Number(elements.depth.value);
  const { width, height } = photograph;
  const session = await sessionOf(depth);
  if (run !== latestRun) return;

  const { after, status } = elements;
  after.width = SCALE * width;
  after.height = SCALE * height;
  const context = after.getContext("2d");
  let milliseconds = 0;
  for (let top = 0; top < height; top += TILE) {
    for (let left = 0; left < width; left += TILE) {
      const outerLeft = Math.max(0, left - MARGIN);
      const outerTop = Math.max(0, top - MARGIN);
      const outerRight = Math.min(width, left + TILE + MARGIN);
      const outerBottom = Math.min(height, top + TILE + MARGIN);
      const input = cut(photograph, outerLeft, outerTop, outerRight - outerLeft, outerBottom - outerTop);
      const start = performance.now();
      const { output } = await session.run({ input });
      milliseconds += performance.now() - start;
      if (run !== latestRun) return;
      const tile = toImageData(
        output,
        SCALE * (left - outerLeft),
        SCALE * (top - outerTop),
        SCALE * (Math.min(width, left + TILE) - left),
        SCALE * (Math.min(height, top + TILE) - top),
      );
      context.putImageData(tile, SCALE * left, SCALE * top);
    }
  }
  status.textContent =
    `Depth ${depth}: ${width} × ${height} to ${after.width} × ${after.height} pixels ` +
    `in ${milliseconds.toFixed(0)} ms (${provider}).`;
}

// --- the page

function say(error) {
  elements.status.textContent = `${error}`;
}

async function start() {
  await loadRuntime();
  elements.file.addEventListener("change", () => open(elements.file.files[0]).catch(say));
  elements.depth.addEventListener("input", () => {
    elements["depth-shown"].value = elements.depth.value;
    enlarge().catch(say);
  });
  elements.split.addEventListener("input", showSplit);
  elements.drop.addEventListener("dragover", (event) => {
    event.preventDefault();
    elements.drop.classList.add("over");
  });
  elements.drop.addEventListener("dragleave", () => elements.drop.classList.remove("over"));
  elements.drop.addEventListener("drop", (event) => {
    event.preventDefault();
    elements.drop.classList.remove("over");
    open(event.dataTransfer.files[0]).catch(say);
  });
  // all depths at once, so that the page works without a network afterwards
  await Promise.all(DEPTHS.map(sessionOf));
  elements.status.textContent = "Ready.";
}

start().catch(say);
