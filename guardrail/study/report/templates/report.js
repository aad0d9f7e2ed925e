"use strict";
// Sortable tables: a button in every header; numbers by value, text by locale, empty cells last.
for (const table of document.querySelectorAll("table.sortable")) {
  const headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    const link = header.querySelector("a"); // to the definition: it stays a link, and the arrow sorts
    if (link) button.setAttribute("aria-label", "Sort by " + link.textContent);
    else button.textContent = header.textContent.trim();
    if (link) header.classList.add("linked");
    if (link) header.append(button);
    else header.replaceChildren(button);
    button.addEventListener("click", () => {
      const up = header.getAttribute("aria-sort") !== "ascending";
      headers.forEach((other) => other.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", up ? "ascending" : "descending");
      const numeric = header.classList.contains("number");
      const key = (row) => row.cells[column].dataset.sort;
      const rows = [...table.tBodies[0].rows].sort((a, b) => {
        const [x, y] = [key(a), key(b)];
        if (x === "" || y === "") return (x === "") - (y === "");
        const order = numeric ? Number(x) - Number(y) : x.localeCompare(y);
        return up ? order : -order;
      });
      table.tBodies[0].append(...rows);
    });
  });
}

// The map: a canvas with the nearest point under the pointer described in a tip.
const holder = document.getElementById("map-data");
if (holder) {
  const data = JSON.parse(holder.textContent);
  const section = document.getElementById("map");
  const canvas = document.getElementById("map-canvas");
  const tip = document.getElementById("map-tip");
  const choice = document.getElementById("map-task");
  const context = canvas.getContext("2d");
  const xs = data.points.map((p) => p.x), ys = data.points.map((p) => p.y);
  const [x0, x1, y0, y1] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  const margin = 18;
  let placed = [];
  section.hidden = false;

  const role = (point, task) => {
    if (point.set !== "pool") return point.set === task ? "task" : null;
    if (point.selected.includes(task + ":high")) return "high";
    if (point.selected.includes(task + ":low")) return "low";
    return "pool";
  };
  const looks = {
    pool: ["#c3c9d0", "dot"], high: ["#D55E00", "up"], low: ["#0072B2", "down"], task: ["#111111", "cross"],
  };
  const draw = (x, y, kind, large) => {
    const [colour, shape] = looks[kind];
    const r = (shape === "dot" ? 2.2 : 3.6) * (large ? 2 : 1);
    context.fillStyle = context.strokeStyle = colour;
    context.beginPath();
    if (shape === "dot") context.arc(x, y, r, 0, 7);
    if (shape === "up") { context.moveTo(x, y - r); context.lineTo(x + r, y + r); context.lineTo(x - r, y + r); }
    if (shape === "down") { context.moveTo(x, y + r); context.lineTo(x + r, y - r); context.lineTo(x - r, y - r); }
    if (shape === "cross") {
      context.moveTo(x - r, y - r); context.lineTo(x + r, y + r);
      context.moveTo(x - r, y + r); context.lineTo(x + r, y - r);
      context.lineWidth = 1.5;
      context.stroke();
    } else context.fill();
  };
  const paint = (active) => {
    const scale = window.devicePixelRatio || 1;
    const width = canvas.clientWidth, height = canvas.clientHeight;
    canvas.width = width * scale;
    canvas.height = height * scale;
    context.setTransform(scale, 0, 0, scale, 0, 0);
    context.clearRect(0, 0, width, height);
    const task = choice.value;
    placed = [];
    for (const kind of ["pool", "low", "high", "task"]) {
      for (const point of data.points) {
        if (role(point, task) !== kind) continue;
        const x = margin + ((point.x - x0) / (x1 - x0 || 1)) * (width - 2 * margin);
        const y = height - margin - ((point.y - y0) / (y1 - y0 || 1)) * (height - 2 * margin);
        placed.push({ x, y, point, kind });
        draw(x, y, kind, false);
      }
    }
    if (active) {
      const found = placed.find((item) => item.point === active.point);
      if (found) draw(found.x, found.y, found.kind, true);
    }
  };
  const words = { pool: "pool, not chosen", high: "chosen: most similar", low: "chosen: least similar", task: "task row" };
  const show = (event) => {
    const box = canvas.getBoundingClientRect();
    const [px, py] = [event.clientX - box.left, event.clientY - box.top];
    let best = null, distance = 18 * 18;
    for (const item of placed) {
      const d = (item.x - px) ** 2 + (item.y - py) ** 2;
      if (d <= distance) { best = item; distance = d; }
    }
    paint(best);
    tip.hidden = !best;
    if (!best) return;
    const { point, kind } = best;
    const lines = [point.text, words[kind]];
    if (point.category) lines.push("category: " + point.category);
    if (point.similarity) lines.push("similarity to " + choice.value + ": " + point.similarity[choice.value].toFixed(3));
    tip.textContent = lines.join("\n");
    tip.style.left = Math.max(0, Math.min(best.x + 10, box.width - tip.offsetWidth - 4)) + "px";
    tip.style.top = (best.y + 14 + tip.offsetHeight > box.height ? best.y - tip.offsetHeight - 8 : best.y + 14) + "px";
  };
  canvas.addEventListener("pointermove", show);
  canvas.addEventListener("pointerdown", show);
  canvas.addEventListener("pointerleave", () => { tip.hidden = true; paint(); });
  choice.addEventListener("change", () => { tip.hidden = true; paint(); });
  window.addEventListener("resize", () => paint());
  paint();
}
