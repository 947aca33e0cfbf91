// The before/after player: one prompt and seed, any two rounds, beside each other or under a slider.
(() => {
  const root = document.getElementById("player"), told = report.data("player-data");
  if (!root || !told) return;
  const find = (name) => root.querySelector(name);
  const [prompt, before, after] = ["prompt", "before", "after"].map((name) => find(`select[name=${name}]`));
  const [wipe, pair, body] = [find("input.wipe"), find(".pair"), find(".marks tbody")];
  const sides = [[".before", before], [".after", after]];
  root.hidden = false;
  before.value = told.before;
  after.value = told.after;
  const restart = report.group(find(".stage"), report.videosOf(pair), find(".controls"), told.fps);

  const show = (value) => {
    if (value === undefined) return "–";
    const size = Math.abs(value);
    return (size >= 100 ? value.toFixed(0) : size >= 0.1 || size === 0 ? value.toFixed(2) : value.toPrecision(2)).replace("-", "−");
  };
  const cell = (tag, text, kind) => {
    const made = document.createElement(tag);
    made.textContent = text;
    if (kind) made.className = kind;
    return made;
  };

  function marks(at) {
    const [one, other] = [at.marks[before.value] || {}, at.marks[after.value] || {}];
    body.replaceChildren();
    for (const mark of told.marks) {
      const [from, to] = [one[mark.name], other[mark.name]];
      if (from === undefined && to === undefined) continue;
      const change = from === undefined || to === undefined ? undefined : to - from;
      const none = change === undefined || Math.abs(change) < 0.0005 * Math.max(Math.abs(from), Math.abs(to));
      const good = !none && mark.better && (change > 0) === (mark.better === "higher");
      const kind = none || !mark.better ? "" : good ? "good" : "bad";
      const sign = change > 0 && !none ? "+" : "";
      const row = document.createElement("tr");
      row.append(cell("th", mark.title), cell("td", show(from)), cell("td", show(to)),
        cell("td", change === undefined ? "" : none ? "0" : sign + show(change), kind));
      body.append(row);
    }
    find(".marks").hidden = !body.children.length;
  }

  function fill() {
    const at = told.cells[prompt.selectedIndex];
    find(".said").textContent = at.prompt;
    for (const [name, select] of sides) {
      const figure = find(name), video = figure.querySelector("video"), clip = at.clips[select.value];
      const label = told.sides[select.value];
      figure.querySelector("figcaption").textContent = clip ? label : `${label}: no clip`;
      video.setAttribute("aria-label", `${at.prompt}, ${label}, seed ${at.seed}`);
      if (clip) video.src = report.source(clip);
      else { video.removeAttribute("src"); video.load(); }
    }
    marks(at);
    restart();
  }

  function cut() {
    const over = root.classList.contains("wiping");
    wipe.hidden = !over;
    pair.style.setProperty("--cut", `${wipe.value}%`);
  }

  root.addEventListener("change", (event) => {
    if (event.target.name === "view") {
      root.classList.toggle("wiping", event.target.value === "wipe");
      cut();
    } else if (event.target.tagName === "SELECT") fill();
  });
  wipe.addEventListener("input", cut);
  const follow = (event) => {
    if (wipe.hidden || (event.pointerType !== "mouse" && !event.buttons)) return;
    const box = pair.getBoundingClientRect();
    wipe.value = String((100 * (event.clientX - box.left)) / box.width);
    cut();
  };
  for (const kind of ["pointermove", "pointerdown"]) pair.addEventListener(kind, follow);
  for (const [name, by] of [[".previous", -1], [".next", 1]])
    find(name).addEventListener("click", () => {
      prompt.selectedIndex = (prompt.selectedIndex + by + told.cells.length) % told.cells.length;
      fill();
    });
  find(".views input[value=beside]").checked = true;
  fill();
})();
