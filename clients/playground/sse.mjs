// Server-sent events out of a byte stream that may be cut anywhere: within a character, a line
// ending or an event. Follows the HTML standard's "Interpreting an event stream".

/** Takes bytes, gives the events that they complete. */
export class EventParser {
  #decoder = new TextDecoder();
  #text = "";
  #afterReturn = false;
  #type = "";
  #data = [];

  /**
   * The events completed by these bytes: `{type, data}`, type "message" unless named.
   * What is left of an unfinished event at the stream's end is not an event.
   */
  feed(bytes) {
    const events = [];
    this.#text += this.#decoder.decode(bytes, { stream: true });
    for (const line of this.#lines()) {
      const event = this.#take(line);
      if (event !== null) events.push(event);
    }
    return events;
  }

  // Lines end by LF, CR or CR LF. After a CR the line is over at once, and an LF that comes next,
  // perhaps in another piece, belongs to it.
  #lines() {
    const lines = [];
    let start = 0;
    for (let i = 0; i < this.#text.length; i++) {
      const character = this.#text[i];
      if (character === "\n" && this.#afterReturn && i === start) {
        start = i + 1;
      } else if (character === "\n" || character === "\r") {
        lines.push(this.#text.slice(start, i));
        start = i + 1;
      }
      this.#afterReturn = character === "\r";
    }
    this.#text = this.#text.slice(start);
    return lines;
  }

  #take(line) {
    if (line === "") return this.#dispatch();
    const colon = line.indexOf(":");
    const field = colon < 0 ? line : line.slice(0, colon);
    let value = colon < 0 ? "" : line.slice(colon + 1);
    if (value.startsWith(" ")) value = value.slice(1);
    if (field === "data") this.#data.push(value);
    if (field === "event") this.#type = value;
    return null;
  }

  #dispatch() {
    const type = this.#type || "message";
    const data = this.#data;
    this.#type = "";
    this.#data = [];
    return data.length === 0 ? null : { type, data: data.join("\n") };
  }
}

/** The events of a `ReadableStream` of bytes, as they come; leaving the loop cancels the stream. */
export async function* readEvents(stream) {
  const reader = stream.getReader();
  const parser = new EventParser();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield* parser.feed(value);
    }
  } finally {
    // After an error or an abort there is nothing left to cancel.
    await reader.cancel().catch(() => {});
  }
}
