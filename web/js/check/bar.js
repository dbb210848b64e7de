// Steps as a bar from pure noise (left) to the picture (right): phases shaded in turn, steps marked, cfg written in.

const SHADES = ["#3f6f9f", "#4f8f7f"];
const WARNING = "#e0a84f";

export function drawBar(canvas, bar, style) {
  if (!bar) return;
  const scale = window.devicePixelRatio || 1;
  const wide = Math.max(canvas.clientWidth || 200, 40);
  const high = Math.max(canvas.clientHeight || 34, 20);
  canvas.width = Math.round(wide * scale);
  canvas.height = Math.round(high * scale);
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  context.clearRect(0, 0, wide, high);
  context.font = "10px sans-serif";
  const ink = style?.color || getComputedStyle(document.body).getPropertyValue("--fg-color") || "#ddd";
  if (bar.error) line(context, bar.error, WARNING, high, wide);
  else paint(context, wide, high, bar, ink);
}

function paint(context, wide, high, bar, ink) {
  const top = 2;
  const tall = high - 16;
  const at = (place) => 4 + (1 - place) * (wide - 8);
  context.fillStyle = "#8884";
  context.fillRect(at(1), top, wide - 8, tall);
  const count = Math.max(bar.levels.length - 1, 0);
  context.textAlign = "center";
  for (let step = 0; step < count; step += 1) {
    const [from, to] = [at(bar.places[step]), at(bar.places[step + 1])];
    context.fillStyle = SHADES[bar.phases[step] % 2];
    context.fillRect(from, top, Math.max(to - from, 1), tall);
    context.fillStyle = "#fff";
    context.fillRect(from - 1, top, 2, tall);
    const value = bar.cfg[bar.phases[step]];
    if (bar.cfg.length > 1 && to - from > 22) context.fillText(`${value}`, (from + to) / 2, top + tall / 2 + 4);
  }
  const cfg = new Set(bar.cfg).size > 1 ? bar.cfg.join(", ") : bar.cfg[0];
  const phases = new Set(bar.phases).size > 1 ? `, ${bar.cfg.length} phases` : "";
  const words = `${count} ${count === 1 ? "step" : "steps"}${phases}, cfg ${cfg}`;
  const [note] = bar.notes;
  line(context, note ? `${words}. ${note}` : words, note ? WARNING : ink, high, wide);
}

function line(context, words, ink, high, wide) {
  context.fillStyle = ink;
  context.textAlign = "left";
  let text = words;
  while (text.length > 4 && context.measureText(text).width > wide - 8) text = `${text.slice(0, -2).trimEnd()}`;
  context.fillText(text === words ? text : `${text.slice(0, -1)}…`, 4, high - 3);
}
