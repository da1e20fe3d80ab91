// What the page does: one run at a time, a generation or a comparison.

import { complete, fetchModel, RequestError } from "./api.mjs";
import { compareExits, offerExits } from "./compare.mjs";
import { make, paint, showError, showFigures } from "./display.mjs";
import { chosenExit, fitToModel, readSampling, readSpeculation, watchControls } from "./settings.mjs";
import { Tally } from "./tally.mjs";

const KEY_NAME = "bitskip-api-key";
const LOADING_RETRY_S = 2;

const element = (id) => document.getElementById(id);
const savedKey = () => sessionStorage.getItem(KEY_NAME) ?? "";

let model = null;
/** What stops the run in progress; null when there is none. */
let running = null;

// The model

async function loadModel() {
  try {
    model = await fetchModel(savedKey());
  } catch (error) {
    report(error);
    // A server that is still loading will be ready; the page need not be loaded again.
    if (error.status === 503) setTimeout(loadModel, 1000 * Math.min(error.retryAfterS ?? LOADING_RETRY_S, 10));
    return;
  }
  showError(null);
  const { id, num_layers, max_model_len } = model;
  element("model").textContent = `${id}: ${num_layers} layers, ${max_model_len} tokens of context`;
  fitToModel(model);
  offerExits(model);
}

// Runs

async function run(work) {
  if (running !== null || !element("form").reportValidity()) return;
  running = new AbortController();
  setRunning(true);
  showError(null);
  try {
    if (model === null) await loadModel();
    if (model !== null) await work(running.signal);
  } catch (error) {
    if (running.signal.aborted) setStatus("Stopped.");
    else report(error);
  } finally {
    running = null;
    setRunning(false);
  }
}

async function generate(signal) {
  const depth = chosenExit();
  const body = { ...readSampling(), exit_layer: depth, speculative: readSpeculation(depth) };
  const output = element("output");
  const tally = new Tally(performance.now());
  let frame = null;
  output.replaceChildren(make("span", "prompt", body.prompt));
  output.setAttribute("aria-busy", "true");
  setStatus("Generating");
  showFigures(tally);
  try {
    for await (const chunk of complete(body, { key: savedKey(), signal })) {
      output.append(...paint(tally.add(chunk, performance.now())));
      // Figures keep step with the screen, however fast the tokens come.
      frame ??= requestAnimationFrame(() => {
        frame = null;
        showFigures(tally);
      });
    }
    const end = tally.finishReason === "length" ? "cut at max tokens" : "to its own end";
    setStatus(`${tally.numTokens} tokens, ${end}. Seed ${body.seed}`, body.seed);
  } finally {
    if (frame !== null) cancelAnimationFrame(frame);
    showFigures(tally);
    output.setAttribute("aria-busy", "false");
  }
}

async function compare(signal) {
  setStatus("Comparing");
  await compareExits(model, savedKey(), signal);
  setStatus("Compared.");
}

function setRunning(isRunning) {
  // Not `disabled`, which would take the focus away from whoever has just pressed the button.
  for (const id of ["generate", "compare"]) element(id).setAttribute("aria-disabled", isRunning);
  element("stop").setAttribute("aria-disabled", !isRunning);
}

function setStatus(text, seed = null) {
  const status = element("status");
  status.textContent = text;
  if (seed === null) return;
  const keep = make("button", "link", "keep");
  keep.type = "button";
  keep.addEventListener("click", () => {
    element("seed").value = seed;
  });
  status.append(" (", keep, ")");
}

function report(error) {
  if (!(error instanceof RequestError)) console.error(error);
  setStatus("");
  showError(error);
  if (error.status === 401) openKeyForm();
}

// The API key

function openKeyForm() {
  element("key-form").hidden = false;
  element("key-toggle").setAttribute("aria-expanded", "true");
  element("key").focus();
}

function closeKeyForm() {
  element("key-form").hidden = true;
  element("key-toggle").setAttribute("aria-expanded", "false");
}

function useKey() {
  const key = element("key").value.trim();
  if (!/^[\x21-\x7e]*$/.test(key)) {
    showError(new RequestError("A key has no spaces and no letters outside ASCII.", { status: 401 }));
    return;
  }
  if (key === "") sessionStorage.removeItem(KEY_NAME);
  else sessionStorage.setItem(KEY_NAME, key);
  closeKeyForm();
  element("generate").focus();
  loadModel();
}

// Events

function onSubmit(id, action) {
  element(id).addEventListener("submit", (event) => {
    event.preventDefault();
    action();
  });
}

onSubmit("form", () => run(generate));
onSubmit("key-form", useKey);
element("compare").addEventListener("click", () => run(compare));
element("stop").addEventListener("click", () => running?.abort());
element("key-toggle").addEventListener("click", () => {
  if (element("key-form").hidden) openKeyForm();
  else closeKeyForm();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
  const isForKey = element("key-form").contains(event.target);
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !isForKey) {
    event.preventDefault();
    run(generate);
  }
});

element("key").value = savedKey();
watchControls();
showFigures(new Tally(0));
loadModel();
