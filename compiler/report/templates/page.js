"use strict";
(() => {
  const root = document.documentElement, tip = document.getElementById("tip");

  // Theme: the system's, until it is chosen.
  document.getElementById("theme").addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });

  // What an element is about, beside the pointer.
  const show = (event) => {
    const about = event.target.closest ? event.target.closest("[data-tip]") : null;
    if (!about) { tip.style.display = "none"; return; }
    tip.textContent = about.dataset.tip;
    tip.style.display = "block";
    const box = tip.getBoundingClientRect();
    const right = event.clientX + 16 + box.width > innerWidth, below = event.clientY + 16 + box.height > innerHeight;
    tip.style.left = Math.max(4, right ? event.clientX - box.width - 12 : event.clientX + 16) + "px";
    tip.style.top = Math.max(4, below ? event.clientY - box.height - 12 : event.clientY + 16) + "px";
  };
  document.addEventListener("pointermove", show, { passive: true });
  document.addEventListener("pointerleave", () => { tip.style.display = "none"; });

  // Stages of a chip and their legend point at each other.
  for (const tab of document.querySelectorAll(".tab")) {
    const chip = tab.querySelector(".chip");
    const mark = (stage) => {
      chip.classList.toggle("dim", stage !== undefined);
      for (const each of tab.querySelectorAll("[data-stage]")) each.classList.toggle("on", each.dataset.stage === stage);
    };
    tab.addEventListener("pointerover", (event) => {
      const stage = event.target.closest("[data-stage]");
      mark(stage ? stage.dataset.stage : undefined);
    });
    tab.addEventListener("pointerleave", () => mark(undefined));
  }
  const links = document.getElementById("links");
  if (links) links.addEventListener("click", () => {
    const off = document.body.classList.toggle("nolinks");
    links.textContent = off ? "show links" : "hide links";
  });

  // The schedule: wheel or buttons zoom, dragging moves.
  const svg = document.querySelector("svg.gantt");
  if (!svg) return;
  const bars = svg.querySelector(".bars"), axis = svg.querySelector(".time-axis");
  const whole = bars.viewBox.baseVal.width, height = bars.viewBox.baseVal.height;
  const seconds = Number(bars.dataset.seconds), left = Number(bars.getAttribute("x")), width = Number(bars.getAttribute("width"));
  let begin = 0, span = whole;
  const told = (value, step) => {
    for (const [factor, unit] of [[1, "s"], [1e3, "ms"]])
      if (value * factor >= 1) return Number((value * factor).toPrecision(12)).toFixed(digits(step * factor)) + " " + unit;
    return value === 0 ? "0" : (value * 1e6).toFixed(digits(step * 1e6)) + " µs";
  };
  const digits = (step) => Math.max(0, Math.min(9, -Math.floor(Math.log10(step) + 1e-9)));
  const draw = () => {
    bars.setAttribute("viewBox", `${begin} 0 ${span} ${height}`);
    const shown = (span / whole) * seconds, from = (begin / whole) * seconds, raw = shown / 8;
    const unit = 10 ** Math.floor(Math.log10(raw)), step = [1, 2, 5, 10].find((each) => each * unit >= raw) * unit;
    const parts = [];
    for (let at = Math.ceil(from / step - 1e-9) * step; at <= from + shown * (1 + 1e-9); at += step) {
      const x = left + ((at - from) / shown) * width;
      const anchor = x < left + 20 ? "start" : x > left + width - 40 ? "end" : "middle";
      parts.push(`<line class="grid" x1="${x}" x2="${x}" y1="${height}" y2="${height + 5}"/>` +
        `<text class="tick" x="${x}" y="${height + 19}" text-anchor="${anchor}">${told(Math.max(0, at), step)}</text>`);
    }
    axis.innerHTML = parts.join("");
  };
  const zoom = (factor, at = 0.5) => {
    const next = Math.min(whole, Math.max(whole * 1e-5, span * factor));
    begin = Math.min(whole - next, Math.max(0, begin + (span - next) * at));
    span = next;
    draw();
  };
  bars.addEventListener("wheel", (event) => {
    event.preventDefault();
    const box = svg.getBoundingClientRect(), scale = box.width / svg.viewBox.baseVal.width;
    zoom(Math.exp(event.deltaY * 0.0022), ((event.clientX - box.left) / scale - left) / width);
  }, { passive: false });
  let held = null;
  bars.addEventListener("pointerdown", (event) => { held = event.clientX; bars.setPointerCapture(event.pointerId); });
  bars.addEventListener("pointermove", (event) => {
    if (held === null) return;
    const scale = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
    begin = Math.min(whole - span, Math.max(0, begin - ((event.clientX - held) / scale / width) * span));
    held = event.clientX;
    draw();
  });
  bars.addEventListener("pointerup", () => { held = null; });
  for (const [id, act] of [["zoom-in", () => zoom(0.4)], ["zoom-out", () => zoom(2.5)], ["zoom-all", () => { begin = 0; span = whole; draw(); }]])
    document.getElementById(id).addEventListener("click", act);
})();
