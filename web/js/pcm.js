// The pack in the frontend: the command that checks few-step settings, its panel and badge, the bar on
// our nodes, and what a node said of its run.

import { app } from "../../../scripts/app.js";
import { barExtension } from "./check/node_bar.js";
import { CheckPanel } from "./check/panel.js";
import { texts } from "./check/texts.js";
import { compactExtension } from "./compact.js";
import { saidExtension } from "./said.js";

const COMMAND = "PhasedConsistency.CheckFewStepSettings";
const SETTING = "PhasedConsistency.CheckOnOpen";
const panel = new CheckPanel();
let waiting = 0;

function checkSoon() {
  clearTimeout(waiting);
  waiting = setTimeout(() => {
    const wanted = app.extensionManager?.setting?.get(SETTING) ?? true;
    if (wanted || panel.isOpen) panel.check({ badge: wanted });
    else panel.showBadge(0);
  }, 200);
}

app.registerExtension({
  name: "phasedconsistency.workflow_check",
  commands: [
    { id: COMMAND, label: "Check few-step settings", icon: "pi pi-check-circle", function: () => panel.open() },
  ],
  menuCommands: [{ path: ["Extensions", "Phased Consistency"], commands: [COMMAND] }],
  settings: [
    {
      id: SETTING,
      category: ["Phased Consistency", "Workflow check", "On open"],
      name: "Check few-step settings when a workflow opens",
      tooltip: "Shows a badge where a sampler does not do what the few-step file on its model is made for.",
      type: "boolean",
      defaultValue: true,
    },
  ],
  getNodeMenuItems(node) {
    const holds = node.outputs?.some((output) => output.type === "MODEL" || output.type === "LATENT");
    return holds ? [{ content: texts().command, callback: () => panel.open() }] : [];
  },
  setup() {
    panel.register();
  },
  afterConfigureGraph() {
    checkSoon();
  },
});

app.registerExtension(barExtension);
app.registerExtension(saidExtension);
app.registerExtension(compactExtension);
