// Steps as a bar from pure noise (left) to the picture (right): phases shaded in turn, steps marked, cfg written in.

import { texts } from "./texts.js";

const SHADES = ["#3f6f9f", "#4f8f7f"];
const SECOND = ["#7a5a9a", "#94618a"]; // steps of the second expert
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
  const [first, end] = bar.ran ?? [0, count];
  for (let step = 0; step < count; step += 1) {
    const [from, to] = [at(bar.places[step]), at(bar.places[step + 1])];
    const shades = bar.second != null && step >= bar.second ? SECOND : SHADES;
    context.globalAlpha = step >= first && step < end ? 1 : 0.3;
    context.fillStyle = shades[bar.phases[step] % 2];
    context.fillRect(from, top, Math.max(to - from, 1), tall);
    context.fillStyle = "#fff";
    context.fillRect(from - 1, top, 2, tall);
    const value = bar.cfg[bar.phases[step]];
    if (bar.cfg.length > 1 && to - from > 22) context.fillText(`${value}`, (from + to) / 2, top + tall / 2 + 4);
  }
  context.globalAlpha = 1;
  const [note] = bar.notes;
  const words = barWords(bar);
  line(context, note ? `${words}. ${note}` : words, note ? WARNING : ink, high, wide);
}

// What a bar shows, in words.
export function barWords(bar) {
  const words = texts();
  const count = Math.max(bar.levels.length - 1, 0);
  const cfg = new Set(bar.cfg).size > 1 ? bar.cfg.join(", ") : bar.cfg[0];
  return [
    words.steps(count),
    bar.ran ? words.ran(bar.ran[0] + 1, bar.ran[1]) : "",
    new Set(bar.phases).size > 1 ? words.phases(bar.cfg.length) : "",
    `cfg ${cfg}`,
    bar.second != null && bar.second < count ? words.second(bar.second + 1) : "",
    bar.windows ? words.windows(...bar.windows) : "",
  ]
    .filter(Boolean)
    .join(", ");
}

function line(context, words, ink, high, wide) {
  context.fillStyle = ink;
  context.textAlign = "left";
  let text = words;
  while (text.length > 4 && context.measureText(text).width > wide - 8) text = `${text.slice(0, -2).trimEnd()}`;
  context.fillText(text === words ? text : `${text.slice(0, -1)}…`, 4, high - 3);
}
