// The panel: one card per few-step file, its steps as a bar, what was found, and the ways to mend it.

import { app } from "../../../../scripts/app.js";
import { ask, rootGraph } from "./ask.js";
import { drawBar } from "./bar.js";
import { element, shadowIn } from "./dom.js";
import { applyAll, showNode } from "./mends.js";
import { language, texts } from "./texts.js";

const TAB = "phased-consistency-check";

export class CheckPanel {
  constructor() {
    this.node = null;
    this.asked = 0;
  }

  // A tab of the sidebar, whose icon carries the badge.
  register() {
    app.extensionManager.registerSidebarTab({
      id: TAB,
      icon: "pi pi-gauge",
      title: texts().title,
      tooltip: texts().command,
      type: "custom",
      render: (parent) => {
        const root = shadowIn(parent);
        this.node = element("section", { className: "pcm-panel" });
        root.append(this.node);
        this.check();
      },
      destroy: () => {
        this.node = null;
      },
    });
  }

  get isOpen() {
    return this.node?.isConnected ?? false;
  }

  // Shows the tab, or checks again where it is shown already.
  open() {
    if (this.isOpen) this.check();
    else app.extensionManager.command.execute(`Workspace.ToggleSidebarTab.${TAB}`);
  }

  // How many settings are wrong, on the icon of the tab; nothing where none is.
  showBadge(count) {
    const tab = app.extensionManager.sidebarTab.sidebarTabs.find((entry) => entry.id === TAB);
    if (!tab) return;
    tab.iconBadge = count ? String(count) : null;
    tab.tooltip = count ? texts().badge(count) : texts().command;
  }

  // Ask for the findings; of several answers under way only the last counts.
  async check({ badge = true } = {}) {
    const turn = ++this.asked;
    const answer = await ask("check", { workflow: rootGraph().serialize(), language: language() });
    if (turn !== this.asked) return;
    const wrong = (answer.findings ?? []).filter((found) => found.level === "wrong").length;
    if (badge) this.showBadge(wrong);
    if (this.isOpen) this.show(answer);
  }

  show(answer) {
    const words = texts();
    const header = element("header", {}, [
      element("strong", { textContent: words.title }),
      button(words.again, () => this.check()),
    ]);
    const cards = answer.error
      ? [element("div", { className: "pcm-card", textContent: `${words.failed} ${answer.error}` })]
      : answer.files.map((file) => this.card(file, answer));
    if (!cards.length) cards.push(element("div", { className: "pcm-card", textContent: words.none }));
    const skipped = (answer.skipped ?? []).map((text) =>
      element("div", { className: "pcm-soft", textContent: `${words.skipped}: ${text}` }),
    );
    if (skipped.length) cards.push(element("div", { className: "pcm-card" }, skipped));
    this.node.replaceChildren(header, ...cards);
    for (const canvas of this.node.querySelectorAll("canvas")) drawBar(canvas, canvas.bar, getComputedStyle(this.node));
  }

  card(file, answer) {
    const words = texts();
    const found = answer.findings.filter((entry) => entry.file === file.title);
    const mends = found.flatMap((entry) => entry.mends);
    const state = !file.active ? words.off : file.used || found.length ? null : words.unused;
    const counts = file.bar ? `, ${words.steps(file.bar.levels.length - 1)}` : "";
    const children = [
      element("h3", { textContent: file.title }),
      element("div", { className: "pcm-soft", textContent: `${file.method}${counts}` }),
      file.bar ? Object.assign(element("canvas"), { bar: file.bar }) : null,
      state ? element("div", { className: "pcm-soft", textContent: state }) : null,
      !state && !found.length ? element("div", { className: "pcm-soft", textContent: words.clean }) : null,
      ...found.map((entry) => this.finding(entry)),
      element("div", { className: "pcm-row" }, [
        mends.length ? button(words.setAll, () => this.mend(mends), { className: "pcm-main" }) : null,
        found.length ? button(words.pcm, () => this.mend(file.pcm_nodes), { disabled: !file.pcm_nodes.length }) : null,
        button(words.show, () => showNode(file.node)),
      ]),
      file.pcm_reason ? element("div", { className: "pcm-soft", textContent: `${words.pcm}: ${file.pcm_reason}` }) : null,
    ];
    return element("div", { className: "pcm-card" }, children);
  }

  finding(entry) {
    const words = texts();
    return element("div", { className: "pcm-finding" }, [
      element("span", { className: `pcm-dot pcm-${entry.level}`, title: words.levels[entry.level] }),
      element("div", { textContent: `${entry.title} ${entry.does}; ${entry.wants}.` }),
      entry.why ? element("div", { className: "pcm-soft", textContent: `${words.source}: ${entry.why}` }) : null,
      element("div", { className: "pcm-row" }, [
        entry.mends.length ? button(words.set, () => this.mend(entry.mends)) : null,
        button(words.show, () => showNode(entry.node)),
      ]),
    ]);
  }

  async mend(steps) {
    const failed = applyAll(steps);
    await this.check();
    if (failed) this.node?.append(element("div", { className: "pcm-card", textContent: texts().partly(failed) }));
  }
}

function button(text, onclick, more = {}) {
  return element("button", { textContent: text, onclick, type: "button", ...more });
}
