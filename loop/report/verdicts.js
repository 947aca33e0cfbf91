// Filters and pages the verdicts. Cards that are not shown hold no video, so the page stays light.
(() => {
  const list = document.getElementById("verdict-cards");
  if (!list) return;
  const section = list.closest("section"), filters = document.getElementById("filters");
  const pager = document.getElementById("pager"), rest = document.getElementById("more-verdicts");
  const named = (name) => filters.querySelector(`[name=${name}]`);
  const onPage = Number(list.dataset.page), groups = new WeakSet();
  const cards = [...list.children, ...(rest ? rest.content.children : [])];
  const words = new Map(); // card → what the search looks through, made when first needed
  let found = cards, page = 0;
  filters.hidden = pager.hidden = false;
  list.replaceChildren();

  const textOf = (card) => {
    if (!words.has(card))
      words.set(card, [...card.querySelectorAll(".prompt, q")].map((e) => e.textContent).join(" ").toLowerCase());
    return words.get(card);
  };

  function release(card) {
    for (const video of report.videosOf(card)) {
      video.pause();
      report.source(video.dataset.clip); // a clip that only this video carried is kept by name
      video.removeAttribute("src");
      video.load();
    }
  }

  function show() {
    const pages = Math.max(1, Math.ceil(found.length / onPage));
    page = Math.min(page, pages - 1);
    const next = found.slice(page * onPage, (page + 1) * onPage);
    for (const card of [...list.children]) if (!next.includes(card)) release(card);
    list.replaceChildren(...next);
    for (const card of next) {
      const videos = report.videosOf(card);
      if (!videos.length) continue;
      if (groups.has(card)) for (const video of videos) { if (!video.src) video.src = report.source(video.dataset.clip); }
      else { groups.add(card); report.group(card.querySelector(".duel"), videos, null); }
    }
    const first = found.length ? page * onPage + 1 : 0;
    const of = found.length === cards.length ? cards.length : `${found.length} found among ${cards.length}`;
    pager.querySelector(".place").textContent = `${first}–${page * onPage + next.length} of ${of}`;
    pager.querySelector(".previous").disabled = page === 0;
    pager.querySelector(".next").disabled = page >= pages - 1;
    section.querySelector(".nothing").hidden = found.length > 0;
  }

  function filter() {
    const value = (name) => named(name).value;
    const text = value("text").trim().toLowerCase(), order = value("order");
    const [least, most] = [Number(value("least")) || 0, value("most") === "" ? 1 : Number(value("most"))];
    const unlimited = least <= 0 && most >= 1; // a verdict without a certainty is in no range
    found = cards.filter(({ dataset }, i) =>
      (!value("round") || dataset.round === value("round")) &&
      (!value("kind") || dataset.kind === value("kind")) &&
      (!value("winner") || dataset.winner.split(" ").includes(value("winner"))) &&
      (!value("fate") || dataset.fate === value("fate") || dataset.fate.split(" ")[0] === value("fate")) &&
      (unlimited || (dataset.certainty !== "" && +dataset.certainty >= least && +dataset.certainty <= most)) &&
      (!text || textOf(cards[i]).includes(text)));
    if (order) {
      const sign = order === "high" ? -1 : 1;
      found.sort((a, b) => sign * (a.dataset.certainty - b.dataset.certainty));
    }
    page = 0;
    show();
  }

  let later = 0;
  filters.addEventListener("change", filter);
  filters.addEventListener("input", (event) => {
    if (event.target.tagName !== "INPUT") return;
    clearTimeout(later);
    later = setTimeout(filter, 150);
  });
  filters.querySelector(".reset").addEventListener("click", () => {
    for (const field of filters.querySelectorAll("select")) field.selectedIndex = 0;
    for (const field of filters.querySelectorAll("input")) field.value = field.defaultValue;
    filter();
  });
  for (const [name, by] of [[".previous", -1], [".next", 1]])
    pager.querySelector(name).addEventListener("click", () => { page += by; show(); });
  show();
})();
