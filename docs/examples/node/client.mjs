// An engine in Node that tells a sidecar what it computes: node client.mjs ADDRESS MODEL.json
//
// MODEL.json is the ModelIdentity of the model that is served. `steps` stands for the engine: put your own in its place.
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import grpc from '@grpc/grpc-js';
import loader from '@grpc/proto-loader';

const ENGINE = 'node-example'; // stable over a restart of the same replica
const REPORT_MS = 500;

const protos = fileURLToPath(new URL('../../../protos', import.meta.url));
const definition = loader.loadSync('stethoscope/v1/control.proto', { includeDirs: [protos], longs: String, enums: String });
const { ControlService, IngestService } = grpc.loadPackageDefinition(definition).stethoscope.v1;

/** What each step of the engine leaves behind: the rows of its requests, and the state of each row. */
function* steps(width) {
  const states = (rows, value) => Array.from({ length: rows }, () => Float32Array.from({ length: width }, (_, i) => (i ? 0 : value)));
  yield [
    { requestId: 'calm', promptTokens: 3, phase: 'PHASE_PREFILL', positions: [0, 1, 2], states: states(3, 0) },
    { requestId: 'loud', promptTokens: 2, phase: 'PHASE_PREFILL', positions: [0, 1], states: states(2, 10) },
  ];
  yield [
    { requestId: 'calm', promptTokens: 3, phase: 'PHASE_DECODE', positions: [3], states: states(1, 0) },
    { requestId: 'loud', promptTokens: 2, phase: 'PHASE_DECODE', positions: [2], states: states(1, 10) },
  ];
}

/** One message for all requests and all tap points of a step (rule 2). The states are little-endian, row-major. */
function stepBatch(step, segments, tapPoints, width) {
  const rows = segments.flatMap((one) => one.states);
  const raw = Buffer.alloc(4 * rows.length * width);
  rows.forEach((row, r) => row.forEach((x, i) => raw.writeFloatLE(x, 4 * (r * width + i))));
  return {
    batchId: `${ENGINE}-${process.pid}-${step}`, // never the same twice
    engineId: ENGINE,
    takenNs: String(BigInt(Date.now()) * 1000000n),
    step,
    segments: {
      requestIds: segments.map((one) => one.requestId),
      rows: segments.map((one) => one.positions.length),
      phases: segments.map((one) => one.phase),
      positions: segments.flatMap((one) => one.positions),
      promptTokens: segments.map((one) => one.promptTokens),
    },
    // A real engine has other states at each tap point; one that it did not take is left out, never filled with zeros.
    tensors: tapPoints.map((tapPoint) => ({ tapPoint, dtype: 'ELEMENT_TYPE_F32', rows: rows.length, columns: width, raw })),
    verdictWithinUs: 5000000, // the answer names every request; leave it out if nobody waits
  };
}

function register(address, credentials, model) {
  const service = new ControlService(address, credentials);
  const asked = { engineId: ENGINE, model };
  return new Promise((resolve, reject) => service.register(asked, (error, answer) => (error ? reject(error) : resolve(answer))))
    .finally(() => service.close());
}

/** The next answer to a batch; what comes between are settings: what to capture, and how much of it. */
async function nextResult(answers) {
  for (;;) {
    const { value, done } = await answers.next();
    if (done) throw new Error('the sidecar has ended the stream');
    if (value.result) return value.result;
  }
}

async function main(address, model) {
  const credentials = grpc.credentials.createInsecure();
  const { control, artifacts = [] } = await register(address, credentials, model); // rule 1
  artifacts.filter((one) => one.reason).forEach((one) => console.error(`${one.name} ${one.evidence}: ${one.reason}`));

  const service = new IngestService(address, credentials);
  const stream = service.stream();
  const answers = stream[Symbol.asyncIterator]();
  // Counted by the scheduler, never by the hook that takes the states; sent behind the batches that they speak of (rule 3).
  const traffic = { engineId: ENGINE, step: 0, tokensComputed: 0, requests: 0 };
  const reporting = setInterval(() => stream.write({ traffic }), REPORT_MS);
  try {
    for (const segments of steps(model.width)) {
      traffic.step += 1;
      traffic.tokensComputed += segments.reduce((sum, one) => sum + one.positions.length, 0);
      traffic.requests += segments.filter((one) => one.positions[0] === 0).length;
      stream.write({ stepBatch: stepBatch(traffic.step, segments, control.tapPoints, model.width) });
      stream.write({ traffic });
      console.log(JSON.stringify(await nextResult(answers))); // whatever it says: never sent again (rule 4)
    }
    stream.write({ finished: { engineId: ENGINE, requestIds: ['calm', 'loud'] } });
    stream.write({ goodbye: { engineId: ENGINE } }); // without it the end of the stream is taken for a crash
    stream.end();
    while (!(await answers.next()).done);
  } finally {
    clearInterval(reporting);
    service.close();
  }
}

const [address, modelFile] = process.argv.slice(2);
await main(address, JSON.parse(readFileSync(modelFile, 'utf8')));
