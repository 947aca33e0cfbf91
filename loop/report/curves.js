// Switches of the curves: what is drawn, which charts, and one category laid over all of its charts.
(() => {
  const bar = document.getElementById("switches");
  if (!bar) return;
  const section = bar.closest("section"), lines = report.data("category-lines") || {};
  const cards = [...section.querySelectorAll(".card[data-key]")];
  const named = (name) => bar.querySelector(`[name=${name}]`);
  const boxes = [...bar.querySelectorAll("[name=chart]")];
  bar.hidden = false;

  const draw = (parent, tag, attributes) => {
    const made = document.createElementNS(parent.namespaceURI, tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    return parent.appendChild(made);
  };
  const numbers = (text) => text.split(" ").map(Number);

  function lay(card, category) {
    const svg = card.querySelector("svg"), points = (lines[card.dataset.key] || {})[category];
    svg.querySelector(".overlay")?.remove();
    card.querySelector(".of-category")?.remove();
    if (!points) return;
    const [left, top, width, height] = numbers(svg.dataset.box);
    const [[x0, x1], [y0, y1]] = [numbers(svg.dataset.x), numbers(svg.dataset.y)];
    const x = (round) => left + (width * (round - x0)) / (x1 - x0);
    const y = (value) => top + height * Math.min(1, Math.max(0, (y1 - value) / (y1 - y0)));
    const over = draw(svg, "g", { class: "overlay" });
    const kept = points.filter((p) => p[4]);
    draw(over, "polyline", { points: kept.map((p) => `${x(p[0])},${y(p[1])}`).join(" ") });
    for (const [round, value, low, high, isKept] of points) {
      const back = isKept ? "" : " back";
      if (low !== null && high !== null)
        draw(over, "line", { class: `interval${back}`, x1: x(round), x2: x(round), y1: y(low), y2: y(high) });
      const dot = draw(over, "circle", { class: `dot${back}`, cx: x(round), cy: y(value), r: 3 });
      const range = low === null ? "" : `, 95 % interval ${low} to ${high}`;
      draw(dot, "title", {}).textContent = `${category}, ${round ? `round ${round}` : "base"}: ${value}${range}`;
    }
    const last = kept[kept.length - 1] || points[points.length - 1];
    const note = document.createElement("p");
    note.className = "note of-category";
    note.textContent = `${category}: ${last[1].toPrecision(2)} in ${last[0] ? `round ${last[0]}` : "the base"}`;
    svg.before(note);
  }

  function apply() {
    const judge = named("judge")?.value || "", category = named("category")?.value || "";
    section.classList.toggle("no-intervals", named("intervals")?.checked === false);
    section.classList.toggle("no-back", named("back")?.checked === false);
    const wanted = new Set(boxes.filter((box) => box.checked).map((box) => box.value));
    for (const card of cards) {
      const by = card.dataset.judge;
      const judged = !judge || (judge === "none" ? !by : by === judge);
      card.hidden = !wanted.has(card.dataset.key) || !judged;
      lay(card, category);
    }
    for (const group of section.querySelectorAll(".group"))
      group.hidden = ![...group.querySelectorAll(".card")].some((card) => !card.hidden);
    section.querySelector(".nothing").hidden = cards.some((card) => !card.hidden);
  }

  bar.addEventListener("change", apply);
  for (const [name, value] of [[".show-all", true], [".hide-all", false]])
    bar.querySelector(name).addEventListener("click", () => { boxes.forEach((box) => (box.checked = value)); apply(); });
  const chooser = bar.querySelector(".chooser");
  chooser.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { chooser.open = false; chooser.querySelector("summary").focus(); }
  });
  document.addEventListener("click", (event) => { if (!chooser.contains(event.target)) chooser.open = false; });
  apply();
})();
