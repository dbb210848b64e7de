// The bar on our sampler nodes: drawn from the widgets and the file upstream while one types, and from the run
// afterwards. It is no value of the node: nothing of it is stored.

import { api } from "../../../../scripts/api.js";
import { app } from "../../../../scripts/app.js";
import { ask, rootGraph } from "./ask.js";
import { barWords, drawBar } from "./bar.js";
import { element } from "./dom.js";
import { findNode, linkInto } from "./mends.js";

const KINDS = ["PCMSampler", "PCMVideoSampler", "PCMPhaseScheduler"];
const HEIGHT = 38;
const EVERY = 40; // milliseconds between looks at the widgets
const bars = new Map(); // node -> { canvas, seen, bar }
let asking = false;

function addBar(node) {
  const canvas = element("canvas", { className: "pcm-bar" });
  Object.assign(canvas.style, { width: "100%", height: `${HEIGHT}px`, display: "block" });
  // In the newer renderer the element of a widget is stretched; the canvas inside it is not.
  const widget = node.addDOMWidget("pcm_bar", "pcm_bar", element("div", {}, [canvas]), {
    serialize: false,
    hideOnZoom: true,
    getMinHeight: () => HEIGHT,
    getMaxHeight: () => HEIGHT,
  });
  widget.serialize = false;
  bars.set(node, { canvas, seen: "", bar: null, wide: 0 });
  const removed = node.onRemoved;
  node.onRemoved = function (...rest) {
    bars.delete(node);
    return removed?.apply(this, rest);
  };
}

// All that a bar depends on: our widgets, and those of whatever makes or passes a model.
function signature(node) {
  const own = (node.widgets ?? []).filter((widget) => widget.name !== "pcm_bar").map((widget) => widget.value);
  const above = [];
  for (const other of node.graph?._nodes ?? []) {
    const passes = other.outputs?.some((output) => output.type === "MODEL") || other.type === "LORA_STACK";
    if (passes) above.push(other.id, other.mode, ...(other.widgets ?? []).map((widget) => widget.value));
  }
  const links = (node.inputs ?? []).map((_, index) => linkInto(node, index)?.id);
  return JSON.stringify([own, above, links]);
}

function pathOf(node) {
  if (!node.graph || node.graph === rootGraph()) return String(node.id);
  for (const other of allNodes(rootGraph(), "")) if (other.node === node) return other.path;
  return String(node.id);
}

function* allNodes(graph, prefix) {
  for (const node of graph?._nodes ?? []) {
    yield { node, path: `${prefix}${node.id}` };
    if (node.subgraph) yield* allNodes(node.subgraph, `${prefix}${node.id}:`);
  }
}

async function look() {
  if (asking || document.hidden || !bars.size) return;
  const changed = [];
  for (const [node, state] of bars) {
    if (!node.graph) continue;
    const wide = state.canvas.clientWidth;
    if (state.bar && wide && wide !== state.wide) draw(state);
    const now = signature(node);
    if (now !== state.seen) changed.push([node, state, now]);
  }
  if (!changed.length) return;
  asking = true;
  try {
    for (const [, state, now] of changed) state.seen = now;
    const paths = changed.map(([node]) => pathOf(node));
    const answer = await ask("bar", { workflow: rootGraph().serialize(), nodes: paths });
    changed.forEach(([, state], index) => show(state, answer.bars?.[paths[index]]));
  } finally {
    asking = false;
  }
}

function show(state, bar) {
  if (!bar) return;
  state.bar = bar;
  draw(state);
}

function draw(state) {
  const { canvas, bar } = state;
  state.wide = canvas.clientWidth;
  drawBar(canvas, bar);
  canvas.title = bar.error ?? bar.notes.join("\n");
  canvas.dataset.steps = bar.error ? "" : String(bar.levels.length - 1);
  canvas.dataset.words = bar.error ?? barWords(bar);
}

export const barExtension = {
  name: "phasedconsistency.node_bar",
  nodeCreated(node) {
    if (KINDS.includes(node.comfyClass)) addBar(node);
  },
  setup() {
    setInterval(look, EVERY);
    api.addEventListener("pcm.bar", ({ detail }) => {
      const node = findNode(detail.node);
      if (bars.has(node)) show(bars.get(node), detail.bar);
    });
  },
};

export function barOf(node) {
  return bars.get(node)?.bar ?? null;
}
