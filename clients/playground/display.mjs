// Painted text and figures. Text becomes nodes by `textContent` alone, never markup.

import { SOURCES } from "./tally.mjs";

const element = (id) => document.getElementById(id);

/** A new element with this class and text. */
export function make(tag, className = "", text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

/** One span per token, painted by source. */
export function paint(tokens) {
  return tokens.map(({ text, source }) => {
    const span = make("span", `token ${source}`, text);
    span.title = text === "" ? `${source}, no text of its own` : source;
    return span;
  });
}

/** Milliseconds, to be read. */
export function duration(ms) {
  if (ms === null) return "–";
  if (ms >= 10_000) return `${(ms / 1000).toFixed(1)} s`;
  return ms >= 1000 ? `${(ms / 1000).toFixed(2)} s` : `${ms.toFixed(ms < 10 ? 1 : 0)} ms`;
}

/** Tokens per second, to be read. */
export function speed(value) {
  return value === null ? "–" : value.toFixed(value < 10 ? 1 : 0);
}

/** Show what a tally has come to. */
export function showFigures(tally) {
  element("rate").textContent = speed(tally.tokensPerSecond);
  element("first").textContent = duration(tally.timeToFirstMs);
  element("num-tokens").textContent = tally.numTokens;
  element("acceptance").textContent =
    tally.acceptanceRate === null ? "–" : percent(tally.acceptanceRate);
  for (const source of SOURCES) {
    document.querySelector(`[data-count=${source}]`).textContent = tally.counts[source];
  }
  showBars(tally.acceptedPerPosition, tally.numRounds);
}

function showBars(accepted, numRounds) {
  const bars = accepted.map((count, i) => {
    const share = numRounds > 0 ? Math.min(1, count / numRounds) : 0;
    const row = make("li");
    const bar = make("span", "bar");
    bar.append(make("span"));
    bar.firstChild.style.width = `${share * 100}%`;
    row.append(make("span", "", i + 1), bar, make("span", "", percent(share)));
    row.title = `${count} of ${numRounds} rounds`;
    return row;
  });
  element("positions").replaceChildren(
    ...(bars.length > 0 ? bars : [make("li", "quiet", "–")]),
  );
}

function percent(share) {
  return `${Math.round(share * 100)} %`;
}

/** Say what went wrong and what can be done; null: nothing is wrong. */
export function showError(error) {
  const box = element("error");
  box.hidden = error === null;
  box.replaceChildren();
  if (error === null) return;
  box.append(make("strong", "", titleOf(error)), make("p", "", error.message));
  if (error.retryAfterS !== null && error.retryAfterS !== undefined) {
    box.append(make("p", "", `Try again in ${error.retryAfterS} s.`));
  }
}

function titleOf({ status, param }) {
  switch (status) {
    case 0:
      return "No answer";
    case 400:
      return param ? `The server refused the request because of ${param}` : "The server refused the request";
    case 401:
      return "The server wants an API key";
    case 429:
      return "The server is busy";
    case 503:
      return "The server is not ready";
    default:
      return "The request failed";
  }
}
