// Elements and their style. What others wrote only ever becomes text, never markup.

export function element(tag, properties = {}, children = []) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children.filter((child) => child != null));
  return made;
}

// A shadow root inside an element of ours: our style stays in it, and other styles out.
export function shadowIn(parent) {
  const host = element("div");
  const root = host.attachShadow({ mode: "open" });
  root.append(element("style", { textContent: STYLE }));
  parent.replaceChildren(host);
  return root;
}

const STYLE = `
.pcm-panel { color: var(--fg-color, #ddd); font: 13px/1.45 sans-serif; }
header { display: flex; gap: 6px; align-items: center; padding: 10px 12px; }
header strong { flex: 1; font-size: 14px; }
button { color: inherit; background: var(--comfy-input-bg, #333); border: 1px solid var(--border-color, #555);
  border-radius: 5px; padding: 3px 9px; font: inherit; cursor: pointer; }
button:hover { filter: brightness(1.25); }
button:disabled { opacity: .45; cursor: default; filter: none; }
button.pcm-main { background: #2f6f4f; border-color: #3d8a64; color: #fff; }
.pcm-card { padding: 10px 12px; border-top: 1px solid var(--border-color, #444); }
h3 { margin: 0 0 2px; font-size: 13px; overflow-wrap: anywhere; }
canvas { width: 100%; height: 34px; display: block; margin: 6px 0; }
.pcm-soft { opacity: .7; }
.pcm-finding { margin: 8px 0; padding-left: 16px; position: relative; overflow-wrap: anywhere; }
.pcm-row { display: flex; gap: 6px; margin-top: 4px; flex-wrap: wrap; }
.pcm-dot { position: absolute; left: 0; top: 5px; width: 9px; height: 9px; border-radius: 50%; }
.pcm-wrong { background: #e0574f; } .pcm-doubtful { background: #e0a84f; } .pcm-note { background: #6f9ad0; }
`;
