// Runs an ONNX file in ONNX Runtime Web (WebAssembly, one thread) in Node.js:
// node onnxruntime_web.mjs MODEL FOLDER, with the package's folder in ORT_WEB.
import fs from "node:fs";
import path from "node:path";

const [model, folder] = process.argv.slice(2);
const ort = await import(path.join(process.env.ORT_WEB, "dist", "ort.node.min.mjs"));
const { version } = JSON.parse(fs.readFileSync(path.join(process.env.ORT_WEB, "package.json")));
ort.env.wasm.numThreads = 1;

// A .npy file of float32: 10 bytes, a header with the shape, the values.
function readNpy(file) {
  const bytes = fs.readFileSync(file);
  const start = 10 + bytes.readUInt16LE(8);
  const header = bytes.subarray(10, start).toString();
  const shape = header.match(/\(([\d, ]+)\)/)[1].split(",").map(Number);
  const values = bytes.buffer.slice(bytes.byteOffset + start, bytes.byteOffset + bytes.length);
  return new ort.Tensor("float32", new Float32Array(values), shape);
}

function writeNpy(file, tensor) {
  const text = `{'descr': '<f4', 'fortran_order': False, 'shape': (${tensor.dims.join(", ")}), }`;
  const length = Math.ceil((10 + text.length + 1) / 64) * 64 - 10;
  const header = Buffer.alloc(10 + length, " ");
  header.write("\x93NUMPY\x01\x00", "latin1");
  header.writeUInt16LE(length, 8);
  header.write(text, 10);
  header.write("\n", 10 + length - 1);
  const values = Buffer.from(tensor.data.buffer, tensor.data.byteOffset, tensor.data.byteLength);
  fs.writeFileSync(file, Buffer.concat([header, values]));
}

const session = await ort.InferenceSession.create(fs.readFileSync(model), {
  executionProviders: ["wasm"],
});
for (const name of fs.readdirSync(folder)) {
  if (!name.startsWith("input_")) continue;
  const { output } = await session.run({ input: readNpy(path.join(folder, name)) });
  writeNpy(path.join(folder, name.replace("input_", "output_")), output);
}
console.log(`version: ${version}`);
