// What a stream's chunks add up to while they come, and the server's own figures at its end.

export const SOURCES = ["draft", "corrected", "bonus", "plain"];

/** Counts one choice's tokens, times and rounds. Times are milliseconds of one clock. */
export class Tally {
  counts = Object.fromEntries(SOURCES.map((source) => [source, 0]));
  tokenIds = [];
  finishReason = null;
  /** The server's `metrics`, once the choice has ended. */
  metrics = null;
  #startedAt;
  #firstAt = null;
  #lastAt = null;
  #numFirst = 0;
  #numRounds = 0;
  #accepted = [];
  #run = 0; // drafts accepted so far in the round that is being read

  constructor(now) {
    this.#startedAt = now;
  }

  /** Take in a chunk; gives its tokens, `{token_id, text, source}`. */
  add(chunk, now) {
    const [choice] = chunk.choices;
    if (choice === undefined) return [];
    const tokens = choice.token_sources;
    tokens.forEach(({ token_id, source }) => this.#count(token_id, source));
    if (tokens.length > 0) {
      if (this.#firstAt === null) {
        this.#firstAt = now;
        this.#numFirst = tokens.length;
      }
      this.#lastAt = now;
    }
    this.finishReason = choice.finish_reason;
    this.metrics = chunk.metrics ?? null;
    return tokens;
  }

  #count(tokenId, source) {
    this.tokenIds.push(tokenId);
    this.counts[source] += 1;
    if (source === "draft") {
      this.#accepted[this.#run] = (this.#accepted[this.#run] ?? 0) + 1;
      this.#run += 1;
    } else {
      // Verification's own token ends the round: a correction, or a bonus after the last draft.
      if (source !== "plain") this.#numRounds += 1;
      this.#run = 0;
    }
  }

  get numTokens() {
    return this.tokenIds.length;
  }

  /** From sending the request (by the server: from its arrival) to the first token. */
  get timeToFirstMs() {
    if (this.metrics) return this.metrics.time_to_first_token_ms;
    return this.#firstAt === null ? null : this.#firstAt - this.#startedAt;
  }

  /** Likewise, to the last token. */
  get totalMs() {
    if (this.metrics) return this.metrics.generation_time_ms;
    return this.#lastAt === null ? null : this.#lastAt - this.#startedAt;
  }

  /** After the first token, so that the prompt's length and the queue do not count. */
  get tokensPerSecond() {
    if (this.metrics) return this.metrics.mean_itl_ms ? 1000 / this.metrics.mean_itl_ms : null;
    const duration = (this.#lastAt ?? 0) - (this.#firstAt ?? 0);
    return duration > 0 ? ((this.numTokens - this.#numFirst) * 1000) / duration : null;
  }

  /** Rounds in which drafts were verified. */
  get numRounds() {
    if (this.metrics) return this.metrics.speculative_decoding?.num_drafts ?? 0;
    return this.#numRounds + (this.#run > 0 && this.finishReason !== null ? 1 : 0);
  }

  /** How often the draft at each position was accepted. */
  get acceptedPerPosition() {
    if (this.metrics) return this.metrics.speculative_decoding?.accepted_per_position ?? [];
    return this.#accepted;
  }

  /** The accepted share of all drafts; only the server knows how many were rejected. */
  get acceptanceRate() {
    return this.metrics?.speculative_decoding?.draft_acceptance_rate ?? null;
  }
}

/** How many leading token ids two choices share. */
export function sharedPrefix(a, b) {
  const length = Math.min(a.length, b.length);
  for (let i = 0; i < length; i++) if (a[i] !== b[i]) return i;
  return length;
}
