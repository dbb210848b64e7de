// The Vue renderer hides advanced inputs until they are asked for, but loads a node as high as all of them need: our nodes
// would stand there half empty. There they are as high as what they show; the renderer lets them grow when asked.

const LITTLE = 10; // pixels by which a stored height may differ from that of all inputs
const BAR = 42; // of the bar under our samplers, which no stored height knows

function advanced(node) {
  if (node.showAdvanced) return 0;
  const hidden = (node.widgets ?? []).filter((widget) => widget.options?.advanced || widget.advanced);
  return hidden.length * (window.LiteGraph.NODE_WIDGET_HEIGHT + 4);
}

function inVue() {
  return Boolean(window.LiteGraph.vueNodesMode);
}

function ours(node) {
  return /^(PCM|SamplerPCM)/.test(node.comfyClass ?? "");
}

export const compactExtension = {
  name: "phasedconsistency.compact",
  nodeCreated(node) {
    if (!ours(node)) return;
    const full = node.computeSize;
    node.computeSize = function (...rest) {
      const size = full.apply(this, rest);
      if (inVue()) size[1] -= advanced(this);
      return size;
    };
  },
  loadedGraphNode(node) {
    if (!ours(node) || !inVue()) return;
    const hidden = advanced(node);
    const shown = node.computeSize()[1];
    const more = node.size[1] - shown - hidden; // room for a picture, in a template; or a height that somebody gave it here
    const mine = String(node.graph?.extra?.workflowRendererVersion ?? "").startsWith("Vue");
    if (!hidden || more < -LITTLE - BAR || (mine && more > LITTLE)) return;
    node.setSize([node.size[0], shown + Math.max(more, 0)]);
  },
};
