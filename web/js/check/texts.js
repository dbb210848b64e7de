// What the panel says in its own words; findings come from the server in the same language.

import { app } from "../../../../scripts/app.js";

const TEXTS = {
  en: {
    command: "Check few-step settings",
    title: "Few-step settings",
    again: "Check again",
    close: "Close",
    show: "Show node",
    set: "Set this value",
    setAll: "Set these values",
    pcm: "Use PCM nodes",
    clean: "Sampled as its authors mean it.",
    unused: "Loaded, but no active sampler uses it.",
    off: "Switched off.",
    none: "This workflow has no few-step file that is known here.",
    failed: "The check got no answer from ComfyUI.",
    levels: { wrong: "wrong", doubtful: "doubtful", note: "note" },
    skipped: "Not judged",
    source: "Source",
    badge: (count) => (count === 1 ? "1 few-step setting is wrong" : `${count} few-step settings are wrong`),
    partly: (count) => `${count} of the changes found no place; undo takes back the others.`,
    steps: (count) => (count === 1 ? "1 step" : `${count} steps`),
    phases: (count) => `${count} phases`,
    ran: (from, to) => (from > to ? "none of them run" : from === to ? `only step ${to}` : `only steps ${from} to ${to}`),
    second: (step) => `second model from step ${step}`,
    windows: (frames, shared) => `windows of ${frames} frames, ${shared} shared`,
  },
  zh: {
    command: "检查少步设置",
    title: "少步设置",
    again: "重新检查",
    close: "关闭",
    show: "显示节点",
    set: "设为此值",
    setAll: "设为这些值",
    pcm: "改用 PCM 节点",
    clean: "采样方式符合作者的要求。",
    unused: "已加载，但没有启用的采样器使用它。",
    off: "已关闭。",
    none: "此工作流中没有已知的少步文件。",
    failed: "ComfyUI 没有回应检查请求。",
    levels: { wrong: "错误", doubtful: "可疑", note: "提示" },
    skipped: "未判断",
    source: "来源",
    badge: (count) => `${count} 个少步设置有误`,
    partly: (count) => `${count} 处更改未能应用；撤销可恢复其余更改。`,
    steps: (count) => `${count} 步`,
    phases: (count) => `${count} 个阶段`,
    ran: (from, to) => (from > to ? "均不运行" : from === to ? `仅第 ${to} 步` : `仅第 ${from} 到 ${to} 步`),
    second: (step) => `从第 ${step} 步起使用第二个模型`,
    windows: (frames, shared) => `窗口 ${frames} 帧，重叠 ${shared} 帧`,
  },
};

export function language() {
  const locale = String(app.extensionManager?.setting?.get("Comfy.Locale") ?? "en");
  return locale.startsWith("zh") ? "zh" : "en";
}

export function texts() {
  return TEXTS[language()];
}
