// The server's HTTP interface: which models it has, and completions as they are generated.
// Addresses are relative to the page, so that it works behind a proxy's prefix too.

import { readEvents } from "./sse.mjs";

/** A request that was not answered as asked. `status` is 0 where no HTTP answer came at all. */
export class RequestError extends Error {
  constructor(message, { status = 0, code = null, param = null, retryAfterS = null } = {}) {
    super(message);
    this.name = "RequestError";
    this.status = status;
    this.code = code;
    this.param = param;
    this.retryAfterS = retryAfterS;
  }
}

/** The first model that is served: `{id, num_layers, exit_layers, max_model_len}`. */
export async function fetchModel(key) {
  const response = await send("v1/models", { headers: authorization(key) });
  return (await jsonOf(response)).data[0];
}

/**
 * The chunks of a streamed completion, as parsed objects. Aborting `signal` closes the
 * connection, upon which the server stops generating, and throws an `AbortError`.
 */
export async function* complete(body, { key, signal }) {
  const response = await send("v1/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json", ...authorization(key) },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  try {
    for await (const { data } of readEvents(response.body)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw errorOf(chunk.error, { status: response.status });
      yield chunk;
    }
  } catch (error) {
    if (signal.aborted || error instanceof RequestError) throw error;
    if (error instanceof SyntaxError) throw new RequestError("The server sent a broken event.");
  }
  throw new RequestError("The connection broke before the answer was complete.");
}

function authorization(key) {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

async function send(address, options) {
  let response;
  try {
    response = await fetch(address, { cache: "no-store", ...options });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new RequestError("The server cannot be reached; it may have been stopped.");
  }
  if (response.ok) return response;
  const details = { status: response.status, retryAfterS: retryAfter(response) };
  let error;
  try {
    error = (await response.json()).error;
  } catch {
    error = null; // A proxy's page, say: there is nothing more to learn from it.
  }
  throw error
    ? errorOf(error, details)
    : new RequestError(`The server answered with status ${response.status}.`, details);
}

function errorOf({ message, code, param }, details) {
  return new RequestError(message, { ...details, code, param });
}

function retryAfter(response) {
  const seconds = Number.parseInt(response.headers.get("Retry-After") ?? "", 10);
  return Number.isNaN(seconds) ? null : seconds;
}

async function jsonOf(response) {
  try {
    return await response.json();
  } catch {
    throw new RequestError("The server's answer is not JSON.", { status: response.status });
  }
}
