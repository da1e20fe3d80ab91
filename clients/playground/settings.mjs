// The form's controls: fitted to the model, and read as the body of a request.

const MAX_DRAFTS = 16;
const LARGEST_DRAWN_SEED = 2 ** 31;

const element = (id) => document.getElementById(id);

/** Fit the controls to `model`, `{num_layers, exit_layers, max_model_len}`. */
export function fitToModel(model) {
  const exit = element("exit");
  exit.max = model.num_layers;
  exit.value = model.num_layers;
  exit.disabled = false;
  element("max-tokens").max = model.max_model_len;
  element("exit-ticks").replaceChildren(
    ...model.exit_layers.map((layer) => makeTick(layer, model.num_layers)),
  );
  fill(element("num-drafts"), "auto: as many as pay", range(0, MAX_DRAFTS));
  fill(element("draft-exit"), "auto", range(1, model.num_layers - 1), "layer ");
  showExit();
}

/** Keep dependent controls in step with those they depend on. */
export function watchControls() {
  element("exit").addEventListener("input", showExit);
  element("speculative").addEventListener("input", showDrafting);
  element("method").addEventListener("input", showDrafting);
}

/** The chosen depth. */
export function chosenExit() {
  return element("exit").valueAsNumber;
}

/** A request's body without `exit_layer` and `speculative`; draws a seed where none is given. */
export function readSampling() {
  const seed = element("seed").value;
  return {
    prompt: element("prompt").value,
    max_tokens: element("max-tokens").valueAsNumber,
    temperature: element("temperature").valueAsNumber,
    seed: seed === "" ? drawSeed() : Number(seed),
    return_metrics: true,
    return_token_sources: true,
  };
}

/** The `speculative` field for an answer of `depth` layers. */
export function readSpeculation(depth) {
  if (!element("speculative").checked) return false;
  const number = (id) => {
    const { value } = element(id);
    return value === "auto" ? undefined : Number(value);
  };
  const method = element("method").value;
  const draftExit = method === "ngram" ? undefined : number("draft-exit");
  return {
    method,
    exit_layer: draftExit < depth ? draftExit : undefined,
    num_speculations: number("num-drafts") ?? "auto",
  };
}

// A seed of the page's own can be shown exactly: the server draws from all 64 bits, which
// JavaScript's numbers cannot hold.
function drawSeed() {
  return crypto.getRandomValues(new Uint32Array(1))[0] % LARGEST_DRAWN_SEED;
}

function range(first, last) {
  return Array.from({ length: Math.max(0, last - first + 1) }, (_, i) => first + i);
}

function fill(select, automatic, values, prefix = "") {
  const { value } = select;
  select.replaceChildren(
    new Option(automatic, "auto"),
    ...values.map((number) => new Option(`${prefix}${number}`, number)),
  );
  select.value = value;
  if (select.selectedIndex < 0) select.value = "auto";
}

function makeTick(layer, numLayers) {
  const tick = document.createElement("button");
  tick.type = "button";
  tick.textContent = layer;
  tick.value = layer;
  tick.setAttribute("aria-label", `Exit layer ${layer}`);
  tick.style.left = `${numLayers > 1 ? ((layer - 1) / (numLayers - 1)) * 100 : 0}%`;
  tick.addEventListener("click", () => {
    element("exit").value = layer;
    showExit();
  });
  return tick;
}

function showExit() {
  const depth = chosenExit();
  const numLayers = Number(element("exit").max);
  element("exit-value").textContent = `${depth} of ${numLayers} layers`;
  element("exit").setAttribute("aria-valuetext", `${depth} of ${numLayers} layers`);
  for (const tick of element("exit-ticks").children) {
    tick.setAttribute("aria-pressed", String(Number(tick.value) === depth));
  }
  // Drafts come from fewer layers than the answer.
  const draftExit = element("draft-exit");
  for (const option of draftExit.options) option.disabled = Number(option.value) >= depth;
  if (draftExit.selectedOptions[0]?.disabled) draftExit.value = "auto";
  showDrafting();
}

function showDrafting() {
  const isOn = element("speculative").checked;
  for (const id of ["method", "num-drafts"]) element(id).disabled = !isOn;
  element("draft-exit").disabled = !isOn || element("method").value === "ngram";
}
