// The bar on our sampler nodes: drawn from the widgets and the file upstream, and from the run afterwards.

export const barExtension = { name: "phasedconsistency.node_bar" };
