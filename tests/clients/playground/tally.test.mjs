// What a stream's chunks add up to. Run by test_modules.py.

import assert from "node:assert/strict";
import test from "node:test";

import { sharedPrefix, Tally } from "../../../clients/playground/tally.mjs";

const chunk = (sources, rest = {}) => ({
  choices: [
    {
      token_sources: sources.map((source, i) => ({ token_id: i, text: "a", source })),
      finish_reason: rest.finish_reason ?? null,
    },
  ],
  metrics: rest.metrics,
});

test("counts by source and acceptance by position, while the stream runs", () => {
  const tally = new Tally(1000);
  assert.equal(tally.tokensPerSecond, null);
  tally.add(chunk(["plain"]), 1020);
  tally.add(chunk(["draft", "draft", "bonus"]), 1030);
  tally.add(chunk(["draft"]), 1040); // a round may come in two chunks
  tally.add(chunk(["corrected"]), 1050);
  tally.add(chunk(["corrected", "plain"]), 1120);
  assert.deepEqual(tally.counts, { draft: 3, corrected: 2, bonus: 1, plain: 2 });
  assert.deepEqual(tally.acceptedPerPosition, [2, 1]);
  assert.equal(tally.numRounds, 3);
  assert.equal(tally.numTokens, 8);
  assert.equal(tally.timeToFirstMs, 20);
  assert.equal(tally.totalMs, 120);
  assert.equal(tally.tokensPerSecond, 70); // 7 tokens in 100 ms
  assert.equal(tally.acceptanceRate, null);
});

test("a drafted end closes its round", () => {
  const tally = new Tally(0);
  tally.add(chunk(["draft", "draft"], { finish_reason: "stop" }), 10);
  assert.equal(tally.numRounds, 1);
});

test("the server's figures replace the page's", () => {
  const tally = new Tally(0);
  const metrics = {
    time_to_first_token_ms: 5,
    generation_time_ms: 25,
    mean_itl_ms: 10,
    speculative_decoding: {
      num_drafts: 4,
      draft_acceptance_rate: 0.25,
      accepted_per_position: [2, 1, 0],
    },
  };
  tally.add(chunk(["draft", "corrected", "plain"], { finish_reason: "length", metrics }), 100);
  tally.add({ choices: [], usage: {} }, 110);
  assert.equal(tally.finishReason, "length");
  assert.equal(tally.timeToFirstMs, 5);
  assert.equal(tally.totalMs, 25);
  assert.equal(tally.tokensPerSecond, 100);
  assert.equal(tally.numRounds, 4);
  assert.equal(tally.acceptanceRate, 0.25);
  assert.deepEqual(tally.acceptedPerPosition, [2, 1, 0]);
});

test("an answer of one token has no speed, and one without drafts no acceptance", () => {
  const tally = new Tally(0);
  const metrics = { mean_itl_ms: null, speculative_decoding: null };
  tally.add(chunk(["plain"], { finish_reason: "length", metrics }), 100);
  assert.equal(tally.tokensPerSecond, null);
  assert.equal(tally.acceptanceRate, null);
  assert.equal(tally.numRounds, 0);
  assert.deepEqual(tally.acceptedPerPosition, []);
});

test("shared prefixes", () => {
  assert.equal(sharedPrefix([1, 2, 3], [1, 2, 4]), 2);
  assert.equal(sharedPrefix([1, 2], [1, 2, 4]), 2);
  assert.equal(sharedPrefix([], [1]), 0);
  assert.equal(sharedPrefix([5], [1]), 0);
});
