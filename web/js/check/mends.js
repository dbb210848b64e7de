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
    case "InsertAfter":
      return insertAfter(findNode(step.node), step);
    case "Replace":
      return replace(step);
    case "Remove":
      return remove(findNode(step.node));
    default:
      return false;
  }
}

function setWidget(node, name, value) {
  if (!node) return false;
  const slot = node.inputs?.findIndex((input) => (input.widget?.name ?? input.name) === name) ?? -1;
  if (slot >= 0 && linkInto(node, slot)) node.disconnectInput(slot);
  const widget = widgetOf(node, name) ?? widgetOf(node, name.split(".")[0]);
  if (!widget) return false;
  const keys = widget === widgetOf(node, name) ? [] : name.split(".").slice(1);
  widget.value = changed(widget.value, keys, value);
  widget.callback?.(widget.value, app.canvas, node);
  return true;
}

// A widget by its name; "#3" is the fourth of those that are stored.
function widgetOf(node, name) {
  if (node.type === "PrimitiveNode" && name === "value") return node.widgets?.[0];
  if (/^#\d+$/.test(name)) return node.widgets?.filter((entry) => entry.serialize !== false)[Number(name.slice(1))];
  return node.widgets?.find((entry) => entry.name === name);
}

// A copy of a value with one place deep inside it changed.
function changed(value, [key, ...keys], next) {
  if (key === undefined) return next;
  const copy = Array.isArray(value) ? [...value] : { ...value };
  copy[key] = changed(copy[key], keys, next);
  return copy;
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

// The link into an input; null where there is none.
export function linkInto(node, index) {
  if (node?.getInputLink) return node.getInputLink(index);
  const id = node?.inputs?.[index]?.link;
  return id == null ? null : (node.graph.getLink?.(id) ?? node.graph.links?.[id] ?? null);
}

// The links of an output. Their ids may be numbers or texts.
function linksFrom(node, slot) {
  const { _links: links } = node.graph;
  const all = links instanceof Map ? [...links.values()] : Object.values(node.graph.links ?? {});
  return all.filter((link) => link && String(link.origin_id) === String(node.id) && link.origin_slot === slot);
}

// What feeds an input: a function that feeds another input of the same graph from there; null if nothing does.
function feeder(node, name) {
  const link = node ? linkInto(node, inputIndex(node, name)) : null;
  if (!link) return null;
  const graph = node.graph;
  const { origin_id: origin, origin_slot: slot } = link;
  if (Number(origin) === SUBGRAPH_IN) {
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
  for (const link of linksFrom(node, slot)) {
    if (Number(link.target_id) === SUBGRAPH_OUT) next.toOutput?.(graph.outputs[link.target_slot]);
    else next.toInput(graph.getNodeById(link.target_id), link.target_slot);
  }
}

function insertAfter(node, step) {
  if (!node?.outputs?.[step.slot]) return false;
  const made = newNode(step.type, step.values, node.graph, [node.pos[0] + node.size[0] + 40, node.pos[1] + 60]);
  if (!made) return false;
  rewire(node, step.slot, into(made, 0));
  node.connect(step.slot, made, inputIndex(made, "model"));
  return true;
}

function inputIndex(node, name) {
  return node.inputs?.findIndex((input) => input.name === name) ?? -1;
}

// Where a link goes that is moved to an output of a new node.
function into(made, slot) {
  return {
    toInput: (target, index) => made.connect(slot, target, index),
    toOutput: (output) => output.connect(made.outputs[slot], made),
  };
}

// A new node that takes over the links of others; they are removed by steps of their own.
function replace(step) {
  const old = findNode(step.at);
  if (!old) return false;
  const feeds = step.inputs.map(([name, node, input]) => [name, feeder(findNode(node), input)]);
  const through = step.through.map(([node, slot, input]) => [findNode(node), slot, feeder(findNode(node), input)]);
  const made = newNode(step.type, step.values, old.graph, old.pos);
  if (!made) return false;
  copyControl([old, ...old.inputs.map((_, index) => originOf(old, index))], made);
  for (const [name, feed] of feeds) {
    const index = inputIndex(made, name);
    if (feed && index >= 0) feed(made, index);
  }
  for (const [path, slot, newSlot] of step.outputs) {
    const source = findNode(path);
    if (source) rewire(source, slot, into(made, newSlot));
  }
  for (const [node, slot, feed] of through) if (node && feed) rewire(node, slot, { toInput: feed });
  return true;
}

function originOf(node, index) {
  const link = linkInto(node, index);
  return link ? node.graph.getNodeById(link.origin_id) : null;
}

// What becomes of the seed after a run stays as it was.
function copyControl(nodes, made) {
  const control = (node) => node?.widgets?.find((widget) => widget.name === "control_after_generate");
  const [old, own] = [nodes.map(control).find((widget) => widget), control(made)];
  if (old && own) own.value = old.value;
}

function remove(node) {
  if (!node) return false;
  node.graph.remove(node);
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
