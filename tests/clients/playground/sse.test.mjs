// The event parser against every way of cutting a stream. Run by test_modules.py.

import assert from "node:assert/strict";
import test from "node:test";

import { EventParser, readEvents } from "../../../clients/playground/sse.mjs";

const EVENTS = [
  { type: "message", data: '{"text":"Grüße, 日本 und 🦉"}' },
  { type: "message", data: "two\nlines" },
  { type: "done", data: " a space stays" },
  { type: "message", data: "" },
  { type: "message", data: "a:b" },
];

const LINES = [
  'data: {"text":"Grüße, 日本 und 🦉"}',
  "",
  ": a comment",
  "",
  "data:two",
  "id: 7",
  "retry: 100",
  "data: lines",
  "",
  "event: done",
  "data:  a space stays",
  "",
  "event: without data",
  "",
  "data",
  "",
  "unknown: field",
  "data: a:b",
  "",
];

const ENDINGS = { LF: "\n", CR: "\r", "CR LF": "\r\n" };

const encode = (text) => new TextEncoder().encode(text);

function parse(pieces) {
  const parser = new EventParser();
  return pieces.flatMap((piece) => parser.feed(piece));
}

for (const [name, ending] of Object.entries(ENDINGS)) {
  const bytes = encode(LINES.map((line) => line + ending).join(""));

  test(`lines that end by ${name}, whole`, () => {
    assert.deepEqual(parse([bytes]), EVENTS);
  });

  test(`lines that end by ${name}, cut in two at every byte`, () => {
    for (let cut = 0; cut <= bytes.length; cut++) {
      assert.deepEqual(parse([bytes.slice(0, cut), bytes.slice(cut)]), EVENTS, `cut at ${cut}`);
    }
  });

  test(`lines that end by ${name}, in pieces of every size`, () => {
    for (let size = 1; size <= 9; size++) {
      const pieces = [];
      for (let i = 0; i < bytes.length; i += size) pieces.push(bytes.slice(i, i + size));
      assert.deepEqual(parse(pieces), EVENTS, `pieces of ${size}`);
    }
  });
}

test("an event comes with the byte that completes it", () => {
  const parser = new EventParser();
  assert.deepEqual(parser.feed(encode("data: a\n")), []);
  assert.deepEqual(parser.feed(encode("\n")), [{ type: "message", data: "a" }]);
  assert.deepEqual(parser.feed(encode("data: b\r")), []);
  assert.deepEqual(parser.feed(encode("\n\r")), [{ type: "message", data: "b" }]);
  assert.deepEqual(parser.feed(encode("\ndata: c\n\n")), [{ type: "message", data: "c" }]);
});

test("a byte order mark is no text", () => {
  assert.deepEqual(parse([encode("\ufeffdata: a\n\n")]), [{ type: "message", data: "a" }]);
});

test("an unfinished event is none", () => {
  assert.deepEqual(parse([encode("data: a\n\ndata: b\n")]), [{ type: "message", data: "a" }]);
});

test("whoever stops reading cancels the stream", async () => {
  let isCancelled = false;
  const stream = new ReadableStream({
    pull: (controller) => controller.enqueue(encode("data: a\n\n")),
    cancel: () => {
      isCancelled = true;
    },
  });
  for await (const event of readEvents(stream)) {
    assert.equal(event.data, "a");
    break;
  }
  assert.ok(isCancelled);
});

test("a broken stream raises its error", async () => {
  const stream = new ReadableStream({
    start: (controller) => controller.error(new TypeError("network error")),
  });
  await assert.rejects(async () => {
    for await (const event of readEvents(stream)) assert.fail(event);
  }, /network error/);
});
