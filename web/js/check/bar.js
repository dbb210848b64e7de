// Steps as a bar from pure noise (left) to the picture (right): phases shaded in turn, steps marked, cfg written in.

const SHADES = ["#3f6f9f", "#4f8f7f"];

export function drawBar(canvas, bar, style) {
  if (!bar) return;
  const scale = window.devicePixelRatio || 1;
  const { width, height } = canvas.getBoundingClientRect();
  const wide = Math.max(width || canvas.clientWidth || 200, 40);
  const high = Math.max(height || canvas.clientHeight || 34, 20);
  canvas.width = Math.round(wide * scale);
  canvas.height = Math.round(high * scale);
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  paint(context, wide, high, bar, style?.color || "#ddd");
}

function paint(context, wide, high, bar, ink) {
  const top = 2;
  const tall = high - 14;
  const at = (place) => 4 + (1 - place) * (wide - 8);
  context.clearRect(0, 0, wide, high);
  context.fillStyle = "#8884";
  context.fillRect(at(1), top, wide - 8, tall);
  const count = bar.levels.length - 1;
  for (let step = 0; step < count; step += 1) {
    const [from, to] = [at(bar.places[step]), at(bar.places[step + 1])];
    context.fillStyle = SHADES[bar.phases[step] % 2];
    context.fillRect(from, top, Math.max(to - from, 1), tall);
  }
  context.fillStyle = "#fff";
  context.font = "10px sans-serif";
  context.textAlign = "center";
  for (let step = 0; step < count; step += 1) {
    context.fillRect(at(bar.places[step]) - 1, top, 2, tall);
    const [from, to] = [at(bar.places[step]), at(bar.places[step + 1])];
    const value = bar.cfg[bar.phases[step]];
    if (bar.cfg.length > 1 && to - from > 22) context.fillText(`${value}`, (from + to) / 2, top + tall / 2 + 4);
  }
  if (bar.start < 1) {
    context.fillStyle = "#e0a84f";
    context.fillRect(at(bar.start) - 1, 0, 2, tall + 4);
  }
  context.fillStyle = ink;
  context.textAlign = "left";
  const cfg = new Set(bar.cfg).size > 1 ? bar.cfg.join(", ") : bar.cfg[0];
  const phases = new Set(bar.phases).size > 1 ? ` in ${bar.cfg.length} phases` : "";
  context.fillText(`${count} steps${phases}, cfg ${cfg}`, 4, high - 2);
}
