// The same prompt and seed at several depths, side by side.

import { complete } from "./api.mjs";
import { duration, make, paint, speed } from "./display.mjs";
import { readSampling, readSpeculation } from "./settings.mjs";
import { sharedPrefix, Tally } from "./tally.mjs";

const element = (id) => document.getElementById(id);

const DRAFTED = "drafted";

/** Offer the model's exits: those it suggests are chosen, full depth always is. */
export function offerExits(model) {
  const layers = Array.from({ length: model.num_layers - 1 }, (_, i) => i + 1);
  const chips = layers.map((layer) => makeChip(layer, `${layer}`, model.exit_layers.includes(layer)));
  const full = makeChip(model.num_layers, `${model.num_layers}: full depth`, true);
  full.firstChild.disabled = true;
  chips.push(full);
  if (model.num_layers > 1) chips.push(makeChip(DRAFTED, "full depth, drafted as set above", true));
  element("compare-exits").replaceChildren(...chips);
}

function makeChip(value, text, isChosen) {
  const chip = make("label");
  const box = document.createElement("input");
  box.type = "checkbox";
  box.value = value;
  box.checked = isChosen;
  chip.append(box, text);
  return chip;
}

/** Run all chosen depths, the full one first, to which the others are compared. */
export async function compareExits(model, key, signal) {
  const full = { title: `Full depth, ${model.num_layers} layers`, depth: model.num_layers, speculative: false };
  const runs = [full];
  const chosen = [...element("compare-exits").querySelectorAll("input:checked:enabled")];
  for (const { value } of chosen.reverse()) {
    if (value === DRAFTED) {
      const speculative = readSpeculation(model.num_layers);
      runs.push({ title: "Full depth, drafted", depth: model.num_layers, speculative });
    } else {
      runs.push({ title: `Exit ${value}`, depth: Number(value), speculative: false });
    }
  }
  const columns = runs.map((run) => new Column(run));
  const container = element("columns");
  container.replaceChildren(...columns.map((column) => column.root));
  container.setAttribute("aria-busy", "true");
  try {
    const sampling = readSampling();
    for (const column of columns) await column.run(sampling, key, signal, columns[0].tally);
  } finally {
    container.setAttribute("aria-busy", "false");
    for (const column of columns) column.endUnfinished();
  }
}

class Column {
  tally = null;
  #run;
  #note = make("p", "quiet", "waiting");
  #figures = Object.fromEntries(["Time", "Tokens/s", "Speed-up"].map((name) => [name, make("dd", "", "–")]));
  #text = make("div", "text");

  constructor(run) {
    this.#run = run;
    this.root = make("article", "panel column");
    const figures = make("dl", "figures");
    for (const [name, value] of Object.entries(this.#figures)) {
      const pair = make("div");
      value.dataset.figure = name;
      pair.append(make("dt", "", name), value);
      figures.append(pair);
    }
    this.root.append(make("h3", "", run.title), figures, this.#note, this.#text);
  }

  /** Generate, and compare with `reference`, the tally of full depth (or this column's own). */
  async run(sampling, key, signal, reference) {
    const body = { ...sampling, exit_layer: this.#run.depth, speculative: this.#run.speculative };
    this.tally = new Tally(performance.now());
    this.#note.textContent = "running";
    for await (const chunk of complete(body, { key, signal })) {
      this.#text.append(...paint(this.tally.add(chunk, performance.now())));
      this.#show();
    }
    this.#compare(reference ?? this.tally);
  }

  /** Say of a column whose run was stopped, or never began, that it has no result. */
  endUnfinished() {
    if (this.tally?.metrics == null) this.#note.textContent = "not finished";
  }

  #show() {
    this.#figures["Time"].textContent = duration(this.tally.totalMs);
    this.#figures["Tokens/s"].textContent = speed(this.tally.tokensPerSecond);
  }

  #compare(reference) {
    const [own, full] = [this.tally.tokensPerSecond, reference.tokensPerSecond];
    const speedUp = own !== null && full !== null ? `${(own / full).toFixed(2)} ×` : "–";
    this.#figures["Speed-up"].textContent = speedUp;
    const { numTokens, tokenIds } = this.tally;
    if (reference === this.tally) {
      this.#note.textContent = `${numTokens} tokens, seed ${this.tally.metrics.seed}`;
      return;
    }
    const shared = sharedPrefix(tokenIds, reference.tokenIds);
    if (shared === numTokens && shared === reference.numTokens) {
      this.#note.textContent = `${numTokens} tokens, the same as full depth`;
    } else {
      this.#note.textContent = `${numTokens} tokens, the first ${shared} as at full depth`;
      this.#text.children[shared]?.classList.add("apart");
    }
  }
}
