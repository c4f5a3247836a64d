(() => {
  "use strict";
  const all = (what, where = document) => [...where.querySelectorAll(what)];
  const make = (name, text) => { const e = document.createElement(name); if (text) e.textContent = text; return e; };
  const rows = document.querySelector(".rows");
  if (rows) timeline(rows);
  const table = document.querySelector("#tasks");
  if (table) sortable(table);

  function timeline(rows) {
    const scroll = rows.parentElement;
    const bars = all(".b", rows);
    const byId = new Map(bars.map((bar) => [bar.id.slice(1), bar]));
    const needs = new Map(), serves = new Map();
    for (const bar of bars) {
      const of = (bar.dataset.n || "").split(" ").map((id) => byId.get(id)).filter(Boolean);
      needs.set(bar, of);
      for (const other of of) serves.set(other, [...(serves.get(other) || []), bar]);
      // What is told below need not be told beside the pointer, too.
      bar.dataset.t = bar.title;
      bar.setAttribute("aria-label", bar.title);
      bar.removeAttribute("title");
      bar.tabIndex = -1;
    }
    const detail = make("p", "Point at a bar, or step through them with the arrow keys, to see what it needed and what needed it.");
    detail.className = "detail";
    detail.setAttribute("aria-live", "polite");
    scroll.after(detail);
    const hint = detail.textContent;
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("class", "deps");
    svg.setAttribute("aria-hidden", "true");
    rows.append(svg);

    function line(from, to, kind) {
      const o = rows.getBoundingClientRect(), a = from.getBoundingClientRect(), b = to.getBoundingClientRect();
      const x = Math.min(a.right, Math.max(a.left, b.left)) - o.left, y = a.top + a.height / 2 - o.top;
      const u = b.left - o.left, v = b.top + b.height / 2 - o.top, bend = Math.max(14, Math.abs(u - x) / 3);
      const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
      path.setAttribute("d", `M${x} ${y}C${x + bend} ${y} ${u - bend} ${v} ${u} ${v}m-6 -4l6 4l-6 4`);
      path.setAttribute("class", kind);
      svg.append(path);
    }
    function clear() {
      svg.replaceChildren();
      rows.classList.remove("dim");
      for (const bar of all(".on,.near", rows)) bar.classList.remove("on", "near");
    }
    function show(bar) {
      clear();
      const before = needs.get(bar) || [], after = serves.get(bar) || [];
      bar.classList.add("on");
      for (const other of before) { other.classList.add("near"); line(other, bar, "in"); }
      for (const other of after) { other.classList.add("near"); line(bar, other, "out"); }
      if (before.length + after.length) rows.classList.add("dim");
      detail.textContent = bar.dataset.t;
    }
    let held = null;
    const back = () => { if (held) show(held); else { clear(); detail.textContent = hint; } };
    rows.addEventListener("pointerover", (e) => { const bar = e.target.closest(".b"); if (bar) show(bar); });
    rows.addEventListener("pointerout", (e) => { if (e.target.closest(".b")) back(); });
    rows.addEventListener("focusin", (e) => { const bar = e.target.closest(".b"); if (bar) { held = bar; show(bar); } });
    rows.addEventListener("focusout", () => { held = null; back(); });

    const middle = (e) => { const r = e.getBoundingClientRect(); return r.left + r.width / 2; };
    function go(bar) {
      if (!bar) return;
      for (const other of all('.b[tabindex="0"]', rows)) other.tabIndex = -1;
      bar.tabIndex = 0;
      bar.focus();
      bar.scrollIntoView({ block: "nearest", inline: "nearest" });
    }
    if (bars.length) bars[0].tabIndex = 0;
    rows.addEventListener("keydown", (e) => {
      const bar = e.target.closest(".b");
      if (!bar) return;
      const own = all(".b", bar.parentElement), place = own.indexOf(bar);
      const lanes = all(".t", rows).filter((lane) => lane.querySelector(".b"));
      const lane = lanes.indexOf(bar.parentElement);
      const nearest = (to) => to && all(".b", to).reduce((best, other) =>
        !best || Math.abs(middle(other) - middle(bar)) < Math.abs(middle(best) - middle(bar)) ? other : best, null);
      const moves = {
        ArrowRight: () => own[place + 1], ArrowLeft: () => own[place - 1], Home: () => own[0],
        End: () => own[own.length - 1], ArrowDown: () => nearest(lanes[lane + 1]), ArrowUp: () => nearest(lanes[lane - 1]),
      };
      if (e.key === "Escape") { bar.blur(); return; }
      if (!moves[e.key]) return;
      e.preventDefault();
      go(moves[e.key]());
    });

    let zoom = 1;
    function zoomTo(next, at = 0.5) {
      next = Math.min(64, Math.max(1, next));
      const x = (scroll.scrollLeft + scroll.clientWidth * at) / rows.scrollWidth;
      zoom = next;
      rows.style.setProperty("--z", zoom);
      scroll.scrollLeft = x * rows.scrollWidth - scroll.clientWidth * at;
      if (held) show(held); else clear();
    }
    const tools = make("div");
    tools.className = "tools";
    for (const [text, label, how] of [["−", "Zoom out", () => zoom / 2], ["+", "Zoom in", () => zoom * 2], ["fit", "Show all", () => 1]]) {
      const button = make("button", text);
      button.type = "button";
      button.setAttribute("aria-label", label);
      button.addEventListener("click", () => zoomTo(how()));
      tools.append(button);
    }
    document.querySelector("#timeline .head").append(tools);
    scroll.addEventListener("wheel", (e) => {
      if (!e.ctrlKey) return;
      e.preventDefault();
      const box = scroll.getBoundingClientRect();
      zoomTo(zoom * (e.deltaY < 0 ? 1.25 : 0.8), (e.clientX - box.left) / box.width);
    }, { passive: false });
    addEventListener("resize", () => { if (held) show(held); else clear(); });
    document.documentElement.dataset.ready = bars.length;
  }

  function sortable(table) {
    const body = table.tBodies[0], heads = all("th", table);
    const key = (row, i) => { const cell = row.cells[i]; return cell.dataset.s === undefined ? cell.textContent : Number(cell.dataset.s); };
    heads.forEach((head, i) => {
      const button = make("button", head.textContent);
      button.type = "button";
      button.className = "sort";
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const compare = (a, b) => typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
        const sorted = [...body.rows].map((row) => [key(row, i), row]).sort((a, b) => compare(a[0], b[0]));
        if (down) sorted.reverse();
        body.append(...sorted.map((pair) => pair[1]));
      });
    });
    const find = make("input");
    find.type = "search";
    find.placeholder = "find a task";
    find.setAttribute("aria-label", "Find a task");
    find.addEventListener("input", () => {
      const text = find.value.toLowerCase();
      for (const row of body.rows) row.hidden = !row.textContent.toLowerCase().includes(text);
    });
    table.closest("section").querySelector(".head").append(find);
  }
})();
