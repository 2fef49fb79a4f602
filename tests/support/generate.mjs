// node generate.mjs PACKAGES MODEL mmap|read|direct COUNT
// Loads a GGUF with llama.cpp and prints the tokens that it generates at temperature 0, as JSON.
import {createRequire} from "node:module";
import {pathToFileURL} from "node:url";
import path from "node:path";

const [packages, modelPath, way, count] = process.argv.slice(2);
const require = createRequire(path.join(packages, "node_modules", "x.js"));
const entry = require.resolve("node-llama-cpp");
const {getLlama, LlamaLogLevel} = await import(pathToFileURL(entry).href);

const llama = await getLlama({
    build: "never", gpu: false, maxThreads: 2, logLevel: LlamaLogLevel.error, skipDownload: true
});
const began = performance.now();
const model = await llama.loadModel({
    modelPath, gpuLayers: 0, useMmap: way === "mmap", useDirectIo: way === "direct"
});
const loaded = performance.now();
const context = await model.createContext({contextSize: 64, batchSize: 64, threads: 2});
const sequence = context.getSequence();
const tokens = [];
for await (const token of sequence.evaluate([1, 10, 20, 30], {temperature: 0})) {
    tokens.push(token);
    if (tokens.length >= Number(count)) break;
}
console.log(JSON.stringify({tokens, way, mmap: model.useMmap, load_ms: Math.round(loaded - began)}));
await model.dispose();
process.exit(0);
