// A client of legato.v1 in another language, with no generated code and no knowledge of Legato but protos/stream.proto.
//
//   node client.mjs HOST:PORT RECORDING.legato stream.proto [LOOKAHEAD]
//
// Reads a packet recording by its published framing, sends its packets with the times at which they once arrived, and
// prints every prediction as one JSON line: those of a replay.
// A token in LEGATO_TOKEN is sent as `authorization: Bearer`. Exit code 1 and the status on stderr when the call fails.

import { readFileSync } from "node:fs";
import { argv, env, exit, stderr, stdout } from "node:process";
import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";
import protobuf from "protobufjs";

const MAGIC = Buffer.from("\x89LEGATO\n", "latin1");
const MARKER = Buffer.from([0xa7, 0x4c, 0x72, 0x1e]);
const HEAD = 12; // bytes before a record: marker, length, CRC-32 of length and record; little-endian
const BATCH = 32; // packets in one message
const START_CODE = Buffer.from([0, 0, 0, 1]);

// ---- the recording: eight magic bytes, then framed RecordingRecords ----

const CRC = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let bit = 0; bit < 8; bit++) n = n & 1 ? (n >>> 1) ^ 0xedb88320 : n >>> 1;
  return n;
});

function crc32(bytes) {
  let crc = ~0;
  for (const byte of bytes) crc = CRC[(crc ^ byte) & 0xff] ^ (crc >>> 8);
  return ~crc >>> 0;
}

function* records(file) {
  if (!file.subarray(0, MAGIC.length).equals(MAGIC)) throw new Error("not a packet recording");
  let at = MAGIC.length;
  while (at + HEAD <= file.length) {
    const length = file.readUInt32LE(at + 4);
    const body = file.subarray(at + HEAD, at + HEAD + length);
    const checked = Buffer.concat([file.subarray(at + 4, at + 8), body]);
    const whole = file.subarray(at, at + 4).equals(MARKER) && body.length === length;
    if (whole && crc32(checked) === file.readUInt32LE(at + 8)) {
      yield body;
      at += HEAD + length;
    } else {
      at = file.indexOf(MARKER, at + 1);
      if (at < 0) return;
    }
  }
}

// ---- H.264 as the wire wants it: Annex B, from the avcC form of MP4 and Matroska (ISO/IEC 14496-15, 5.3.3) ----

function annexB(codec) {
  const data = codec.extradata;
  if (codec.codec !== "h264" || data.length < 7 || data[0] !== 1) return (payload) => payload;
  const size = (data[4] & 3) + 1;
  const sets = [];
  let at = 5;
  for (const mask of [0x1f, 0xff]) {
    const count = data[at++] & mask;
    for (let i = 0; i < count; i++) {
      const length = data.readUInt16BE(at);
      sets.push(START_CODE, data.subarray(at + 2, at + 2 + length));
      at += 2 + length;
    }
  }
  codec.extradata = Buffer.concat(sets);
  return (payload) => {
    const units = [];
    for (let from = 0; from + size < payload.length; ) {
      const length = payload.readUIntBE(from, size);
      units.push(units.length ? START_CODE.subarray(1) : START_CODE, payload.subarray(from + size, from + size + length));
      from += size + length;
    }
    return Buffer.concat(units);
  };
}

// ---- the call ----

function* requests(file, Record, wishes) {
  const convert = {};
  const lastSeq = {};
  let batch = [];
  for (const body of records(file)) {
    const record = Record.toObject(Record.decode(body), { longs: String, enums: String, bytes: Buffer });
    if (record.header) {
      for (const codec of record.header.codecs) {
        codec.extradata = Buffer.from(codec.extradata ?? []);
        convert[codec.modality] = annexB(codec);
      }
      const { name, codecs, origin, duration_seconds, sequence_numbers = false } = record.header;
      yield { config: { name, codecs, origin, duration_seconds, sequence_numbers, recorded: true, ...wishes } };
    } else if (record.packet) {
      const packet = record.packet.packet;
      packet.payload = convert[packet.modality](Buffer.from(packet.payload ?? []));
      packet.arrival_seconds = record.packet.arrival_seconds; // absent: the moment it was sent
      lastSeq[packet.modality] = packet.seq ?? "0";
      batch.push(packet);
      if (batch.length === BATCH) {
        yield { packets: { packets: batch } };
        batch = [];
      }
    }
  }
  if (batch.length) yield { packets: { packets: batch } };
  for (const modality of Object.keys(convert)) yield { end_of_stream: { modality, last_seq: lastSeq[modality] } };
}

async function send(call, messages) {
  for (const message of messages) {
    if (!call.write(message)) await new Promise((resolve) => call.once("drain", resolve));
  }
  call.end();
}

const [address, recording, proto, lookahead] = argv.slice(2);
const options = { keepCase: true, longs: String, enums: String, defaults: true, oneofs: true };
const { legato } = grpc.loadPackageDefinition(loader.loadSync(proto, options));
const root = new protobuf.Root().loadSync(proto, { keepCase: true });
const Record = root.lookupType("legato.v1.RecordingRecord");
const metadata = new grpc.Metadata();
if (env.LEGATO_TOKEN) metadata.set("authorization", `Bearer ${env.LEGATO_TOKEN}`);

const client = new legato.v1.InferenceService(address, grpc.credentials.createInsecure());
const call = client.Stream(metadata);
call.on("data", (answer) => {
  if (answer.response === "prediction") stdout.write(`${JSON.stringify(answer.prediction)}\n`);
});
call.on("error", (error) => {
  stderr.write(`${grpc.status[error.code]}: ${error.details}\n`);
  exit(1);
});
call.on("end", () => client.close());
const wishes = lookahead === undefined ? {} : { lookahead: Number(lookahead) };
await send(call, requests(readFileSync(recording), Record, wishes));
