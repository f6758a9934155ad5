"use strict";
(() => {
  const root = document.documentElement;
  const tip = document.getElementById("tip");
  root.classList.add("live");

  // Theme: what the system says, or what was chosen on this page before. Storage may be forbidden (files, notebooks).
  const button = document.getElementById("theme");
  const themes = ["auto", "light", "dark"];
  const stored = () => { try { return localStorage.getItem("unbraid-theme"); } catch { return null; } };
  const apply = (theme) => {
    if (theme === "auto") delete root.dataset.theme; else root.dataset.theme = theme;
    button.textContent = "Theme: " + theme;
    button.value = theme;
  };
  apply(themes.includes(stored()) ? stored() : "auto");
  button.hidden = false;
  button.addEventListener("click", () => {
    apply(themes[(themes.indexOf(button.value) + 1) % themes.length]);
    try { localStorage.setItem("unbraid-theme", button.value); } catch { /* stays for this visit */ }
  });

  // Tables: a click on a column's name sorts; numbers by their full value, gaps always last.
  const key = (row, column) => {
    const cell = row.cells[column];
    return "v" in cell.dataset ? (cell.dataset.v === "" ? null : Number(cell.dataset.v)) : cell.textContent;
  };
  const compare = (a, b) => {
    if (typeof a === "number" && typeof b === "number") return a - b;
    return String(a).localeCompare(String(b), undefined, { numeric: true });
  };
  const sort = (head) => {
    const table = head.closest("table");
    const column = head.cellIndex;
    const numeric = head.classList.contains("number");
    const before = head.getAttribute("aria-sort");
    const order = before === null ? (numeric ? "descending" : "ascending") : before === "ascending" ? "descending" : "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", order);
    const sign = order === "ascending" ? 1 : -1;
    const rows = [...table.tBodies[0].rows].map((row, i) => [key(row, column), i, row]);
    rows.sort(([a, i], [b, j]) => (a === null ? (b === null ? i - j : 1) : b === null ? -1 : sign * compare(a, b) || i - j));
    table.tBodies[0].append(...rows.map((item) => item[2]));
  };
  for (const head of document.querySelectorAll(".data th")) head.firstChild.addEventListener("click", () => sort(head));

  // Values: told on hover, on touch, and with the arrow keys once a picture has the focus.
  let on = null;
  const told = (item) => {
    if (item.dataset.tip !== undefined) return item.dataset.tip;
    const row = item.parentNode;
    const head = "H" + [...row.children].indexOf(item);
    const interval = item.dataset.i === undefined ? "" : " [" + item.dataset.i + "]";
    return row.dataset.row + head + " · " + row.dataset.site + " · " + item.dataset.v + interval;
  };
  const hide = () => { tip.hidden = true; if (on) on.classList.remove("on"); on = null; };
  const show = (item) => {
    hide();
    on = item;
    item.classList.add("on");
    tip.textContent = told(item);
    tip.hidden = false;
    const box = item.getBoundingClientRect();
    const mine = tip.getBoundingClientRect();
    const left = Math.min(Math.max(8, box.left + box.width / 2 - mine.width / 2), root.clientWidth - mine.width - 8);
    tip.style.left = left + "px";
    tip.style.top = (box.top - mine.height - 8 > 0 ? box.top - mine.height - 8 : box.bottom + 8) + "px";
  };
  const item = (event) => event.target.closest("[data-tip], rect[data-v]");
  document.addEventListener("pointerover", (event) => { const found = item(event); if (found) show(found); else if (!document.activeElement.matches(".rove:focus-visible")) hide(); });
  document.addEventListener("scroll", () => { if (!document.activeElement.matches(".rove:focus-visible")) hide(); }, { capture: true, passive: true });
  const within = (box) => [...box.querySelectorAll("[data-tip], rect[data-v]")];
  const vertical = (items, at, step) => {
    const row = items[at].parentNode;
    if (row.dataset.row === undefined) return at + step;
    const column = [...row.children].indexOf(items[at]);
    let next = row;
    do next = step > 0 ? next.nextElementSibling : next.previousElementSibling; while (next && next.dataset.row === undefined);
    return next ? items.indexOf(next.children[Math.min(column, next.children.length - 1)]) : at;
  };
  for (const box of document.querySelectorAll(".rove")) {
    box.addEventListener("keydown", (event) => {
      const items = within(box);
      if (event.key === "Escape") return hide();
      if (!items.length || !/^(Arrow|Home$|End$)/.test(event.key)) return;
      event.preventDefault();
      let at = items.indexOf(on);
      if (at < 0) at = event.key === "End" ? items.length - 1 : 0;
      else if (event.key === "ArrowRight") at += 1;
      else if (event.key === "ArrowLeft") at -= 1;
      else if (event.key === "ArrowDown") at = vertical(items, at, 1);
      else if (event.key === "ArrowUp") at = vertical(items, at, -1);
      else at = event.key === "Home" ? 0 : items.length - 1;
      show(items[Math.min(Math.max(at, 0), items.length - 1)]);
      on.scrollIntoView({ block: "nearest" });
    });
    box.addEventListener("blur", hide);
  }
})();
