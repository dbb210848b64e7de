// What a node said of its run, below its widgets. The frontend shows it while the run lasts, and newer ones take it away
// when it ends, so that nobody reads it: then it is put back here. It is no value of the node: nothing of it is stored.

import { api } from "../../../scripts/api.js";
import { element } from "./check/dom.js";
import { findNode } from "./check/mends.js";

const NAME = "pcm_said";
const OWN = "$$node-text-preview"; // the frontend's widget for it
const LINE = 16;
const LETTERS = 38; // of a line, in a node of usual width
const AFTER = 100; // milliseconds after a run, when the frontend has taken its own away
const ENDS = ["execution_success", "execution_error", "execution_interrupted"];
const said = new Map(); // id of a node, with those of the subgraphs around it -> text

function find(node, name) {
  return node.widgets?.find((widget) => widget.name === name);
}

function remove(node) {
  const widget = find(node, NAME);
  if (!widget) return;
  widget.onRemove?.();
  node.widgets.splice(node.widgets.indexOf(widget), 1);
}

function height(text) {
  const lines = text.split("\n").reduce((sum, line) => sum + Math.max(1, Math.ceil(line.length / LETTERS)), 0);
  return Math.min(lines, 8) * LINE + 8;
}

function add(node, text) {
  const box = element("div", { className: "pcm-said" });
  box.textContent = text;
  Object.assign(box.style, {
    fontSize: "11px",
    lineHeight: `${LINE}px`,
    whiteSpace: "pre-wrap",
    overflowY: "auto",
    overflowWrap: "anywhere",
    maxHeight: `${height(text)}px`,
    color: "var(--fg-color, #ddd)",
  });
  const widget = node.addDOMWidget(NAME, NAME, element("div", {}, [box]), {
    serialize: false,
    hideOnZoom: true,
    getMinHeight: () => height(text),
    getMaxHeight: () => height(text),
  });
  widget.serialize = false;
  const [wide, high] = node.computeSize();
  node.setSize([Math.max(node.size[0], wide), Math.max(node.size[1], high)]);
}

function settle() {
  for (const [id, text] of said) {
    const node = findNode(id);
    if (!node) continue;
    remove(node);
    if (text && !find(node, OWN)) add(node, text);
    node.setDirtyCanvas?.(true, true);
  }
  said.clear();
}

export const saidExtension = {
  name: "phasedconsistency.said",
  setup() {
    api.addEventListener("pcm.said", ({ detail }) => {
      said.set(String(detail.node), detail.text);
      const node = findNode(String(detail.node));
      if (node) remove(node); // the frontend shows the new one now
    });
    for (const end of ENDS) api.addEventListener(end, () => setTimeout(settle, AFTER));
  },
};
