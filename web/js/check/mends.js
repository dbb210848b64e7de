// Applies what the check proposes to the graph on the canvas, all of it as one step of undo.

import { app } from "../../../../scripts/app.js";
import { rootGraph } from "./ask.js";

const SUBGRAPH_IN = -10;
const SUBGRAPH_OUT = -20;

// A node by its id with those of the subgraphs around it: "128:81".
export function findNode(path) {
  let graph = rootGraph();
  let node = null;
  for (const part of String(path).split(":")) {
    if (node) graph = node.subgraph;
    node = graph?.getNodeById?.(Number.isNaN(Number(part)) ? part : Number(part)) ?? null;
    if (!node) return null;
  }
  return node;
}

// Returns how many steps found no place.
export function applyAll(steps) {
  const tracker = app.extensionManager?.workflow?.activeWorkflow?.changeTracker;
  const capture = () => (tracker?.captureCanvasState ?? tracker?.checkState)?.call(tracker);
  capture();
  tracker?.beforeChange?.();
  let failed = 0;
  try {
    const seen = new Set();
    for (const step of steps) {
      const key = JSON.stringify(step);
      if (seen.has(key)) continue;
      seen.add(key);
      if (!apply(step)) failed += 1;
    }
  } finally {
    tracker?.afterChange?.();
    capture();
    app.canvas?.setDirty(true, true);
  }
  return failed;
}

function apply(step) {
  switch (step.kind) {
    case "SetWidget":
      return setWidget(findNode(step.node), step.widget, step.value);
    case "Bypass":
      return bypass(findNode(step.node));
    case "Connect":
      return connect(findNode(step.source), step.slot, findNode(step.node), step.input);
    case "Insert":
      return insert(step);
    case "Replace":
      return replace(step);
    default:
      return false;
  }
}

function setWidget(node, name, value) {
  if (!node) return false;
  const slot = node.inputs?.findIndex((input) => (input.widget?.name ?? input.name) === name) ?? -1;
  if (slot >= 0 && node.inputs[slot].link != null) node.disconnectInput(slot);
  const [row, key] = name.split(".");
  const isPrimitive = node.type === "PrimitiveNode" && name === "value";
  const widget = isPrimitive ? node.widgets?.[0] : node.widgets?.find((entry) => entry.name === row);
  if (!widget) return false;
  widget.value = key ? { ...widget.value, [key]: value } : value;
  widget.callback?.(widget.value, app.canvas, node);
  return true;
}

function bypass(node) {
  if (!node) return false;
  node.mode = 4;
  return true;
}

function connect(source, slot, target, name) {
  const index = target?.inputs?.findIndex((input) => input.name === name) ?? -1;
  if (!source || index < 0 || source.graph !== target.graph) return false;
  return source.connect(slot, target, index) != null;
}

function linkOf(graph, id) {
  return id == null ? null : (graph.getLink?.(id) ?? graph._links?.get?.(id) ?? graph.links?.[id] ?? null);
}

// What feeds an input: a function that feeds another input of the same graph from there; null if nothing does.
function feeder(node, name) {
  const input = node?.inputs?.find((entry) => entry.name === name);
  const link = linkOf(node?.graph, input?.link);
  if (!link) return null;
  const graph = node.graph;
  const { origin_id: origin, origin_slot: slot } = link;
  if (origin === SUBGRAPH_IN) {
    return (target, index) => graph.inputs[slot].connect(target.inputs[index], target);
  }
  const source = graph.getNodeById(origin);
  return source ? (target, index) => source.connect(slot, target, index) : null;
}

function newNode(type, values, graph, pos) {
  const node = window.LiteGraph.createNode(type);
  if (!node) return null;
  node.pos = [pos[0], pos[1]];
  graph.add(node);
  for (const [name, value] of values) setWidget(node, name, value);
  return node;
}

function insert(step) {
  const target = findNode(step.node);
  const index = target?.inputs?.findIndex((input) => input.name === step.input) ?? -1;
  const feed = feeder(target, step.input);
  if (index < 0 || !feed) return false;
  const made = newNode(step.type, step.values, target.graph, [target.pos[0], target.pos[1] - 110]);
  if (!made) return false;
  feed(made, 0);
  made.connect(0, target, index);
  return true;
}

// Feeds everything that an output feeds from another node's output, or by a feeder.
function rewire(node, slot, next) {
  const graph = node.graph;
  for (const id of [...(node.outputs?.[slot]?.links ?? [])]) {
    const link = linkOf(graph, id);
    if (!link) continue;
    if (link.target_id === SUBGRAPH_OUT) next.toOutput?.(graph.outputs[link.target_slot]);
    else next.toInput(graph.getNodeById(link.target_id), link.target_slot);
  }
}

function replace(step) {
  const old = findNode(step.at);
  if (!old) return false;
  const feeds = step.inputs.map(([name, node, input]) => [name, feeder(findNode(node), input)]);
  const through = step.through.map(([node, slot, input]) => [findNode(node), slot, feeder(findNode(node), input)]);
  const made = newNode(step.type, step.values, old.graph, old.pos);
  if (!made) return false;
  for (const [name, feed] of feeds) {
    const index = made.inputs.findIndex((input) => input.name === name);
    if (feed && index >= 0) feed(made, index);
  }
  for (const [path, slot, newSlot] of step.outputs) {
    rewire(findNode(path), slot, {
      toInput: (target, index) => made.connect(newSlot, target, index),
      toOutput: (output) => output.connect(made.outputs[newSlot], made),
    });
  }
  for (const [node, slot, feed] of through) if (feed) rewire(node, slot, { toInput: feed });
  for (const path of step.removes) {
    const node = findNode(path);
    node?.graph.remove(node);
  }
  return true;
}

export function showNode(path) {
  const node = findNode(path);
  if (!node) return false;
  if (node.graph && app.canvas.graph !== node.graph) app.canvas.setGraph?.(node.graph);
  app.canvas.deselectAll?.();
  app.canvas.selectNode?.(node);
  app.canvas.centerOnNode?.(node);
  app.canvas.setDirty(true, true);
  return true;
}
