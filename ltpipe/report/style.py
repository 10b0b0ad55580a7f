"""Looks and behaviour of all pages: light and dark, on paper, on narrow screens; tables to sort and search."""

CSS = """
:root { color-scheme: light dark; --ink: #1d2630; --soft: #5b6773; --line: #dfe4e9; --tint: #f5f7f9; --paper: #fff;
  --rule: #b9c3cc; --hover: #eef5fa; --accent: #0068a3; --good: #00704f; --bad: #a83f00; --pale: #67727d;
  --r: #a83f00; --c: #8a6100; --f: #0068a3; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e9ee; --soft: #a3afba; --line: #303943; --tint: #1d242b; --paper: #14191e; --rule: #4a5663;
    --hover: #222d37; --accent: #6cb8ea; --good: #56c596; --bad: #f0955a; --pale: #8b97a3;
    --r: #f0955a; --c: #dbb454; --f: #6cb8ea; } }
* { box-sizing: border-box; }
html { scroll-padding-top: 3.4rem; }
body { margin: 0; color: var(--ink); background: var(--paper); line-height: 1.5; font-size: 15px;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
a { color: var(--accent); }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
header { background: linear-gradient(90deg, #10324a, #0d4f76); color: #fff; padding: 2rem 0 1.6rem; }
header h1 { margin: 0 0 .3rem; font-size: 1.75rem; letter-spacing: -.01em; overflow-wrap: anywhere; }
header p { margin: 0; color: #cfe0ec; max-width: 60rem; }
.wrap { max-width: 1180px; margin: 0 auto; padding: 0 1.5rem; }
nav { position: sticky; top: 0; z-index: 3; border-bottom: 1px solid var(--line); background: var(--tint); }
nav .wrap { display: flex; gap: .2rem 1.4rem; padding-top: .55rem; padding-bottom: .55rem; overflow-x: auto; }
nav a { text-decoration: none; font-size: .9rem; white-space: nowrap; }
nav a:hover { text-decoration: underline; }
section { margin: 2.2rem 0; }
h2 { font-size: 1.3rem; margin: 0 0 .4rem; padding-bottom: .3rem; border-bottom: 2px solid var(--accent); }
h3 { font-size: 1.02rem; margin: 1.5rem 0 .4rem; }
h4 { font-size: .92rem; margin: .9rem 0 .2rem; color: var(--soft); font-weight: 600; }
p.note { color: var(--soft); margin: .35rem 0 .9rem; max-width: 52rem; }
p.lead { font-size: 1.12rem; max-width: 56rem; margin: .6rem 0; }
ul.next { max-width: 56rem; padding-left: 1.2rem; }
ul.next li { margin: .35rem 0; }
code { font-size: .9em; background: var(--tint); border: 1px solid var(--line); border-radius: 4px; padding: 0 .3em;
  overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
.tall { max-height: 36rem; overflow-y: auto; border-bottom: 1px solid var(--line); }
.tall thead th { position: sticky; top: 0; z-index: 1; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; margin: .5rem 0 1rem; }
th, td { padding: .34rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { color: var(--soft); font-weight: 600; border-bottom: 2px solid var(--rule); background: var(--tint); }
.sortable th { white-space: normal; min-width: 4rem; vertical-align: bottom; }
th button { all: unset; cursor: pointer; }
th button:focus-visible { outline: 2px solid var(--accent); }
th button::after { content: "\\2195"; opacity: .35; padding-left: .3em; }
th[aria-sort=ascending] button::after { content: "\\2191"; opacity: 1; }
th[aria-sort=descending] button::after { content: "\\2193"; opacity: 1; }
th.text, td.text { text-align: left; }
td.long { white-space: normal; min-width: 12rem; max-width: 30rem; }
tbody tr:hover { background: var(--hover); }
tr.first td { border-top: 2px solid var(--rule); }
tr.pale td { color: var(--pale); }
td.best { font-weight: 700; color: var(--accent); }
.good { color: var(--good); font-weight: 600; }
.bad { color: var(--bad); font-weight: 600; }
.find { display: flex; gap: .7rem; align-items: center; margin: .6rem 0 0; color: var(--soft); font-size: .88rem; }
.find input { font: inherit; color: inherit; background: var(--paper); border: 1px solid var(--rule);
  border-radius: 6px; padding: .3rem .6rem; width: min(22rem, 70vw); }
figure { margin: 1rem 0; }
figure img { max-width: 100%; width: 860px; height: auto; border: 1px solid var(--line); border-radius: 6px;
  padding: .8rem; background: #fff; }
figcaption { color: var(--soft); font-size: .88rem; max-width: 52rem; margin-top: .35rem; }
.cards { display: flex; flex-wrap: wrap; gap: .9rem; margin: 1.2rem 0; }
.card { border: 1px solid var(--line); border-radius: 8px; padding: .7rem 1rem; min-width: 9.5rem; }
.card b { display: block; font-size: 1.45rem; line-height: 1.2; }
.card span { color: var(--soft); font-size: .82rem; }
ul.columns { columns: 22rem; padding-left: 1.2rem; font-size: .9rem; max-width: 60rem; }
td small { color: var(--soft); }
.pair { display: flex; flex-wrap: wrap; gap: 0 2.5rem; }
.pair > div { min-width: 0; max-width: 100%; }
.shots { display: flex; flex-wrap: wrap; gap: .8rem; margin: .3rem 0 .8rem; align-items: flex-start; }
.shots figure { margin: 0; max-width: 100%; }
.shots img { display: block; width: auto; max-width: 100%; max-height: 320px; padding: 0; border-radius: 4px; }
.shots.large img { max-height: 480px; }
.shots figcaption { max-width: 17rem; font-size: .8rem; line-height: 1.35; overflow-wrap: anywhere; }
.tag { display: inline-block; border: 1px solid currentColor; border-radius: 9px; font-size: .76rem; padding: 0 .5em;
  margin-left: .5em; vertical-align: .1em; font-weight: 600; }
.tag.r { color: var(--r); } .tag.c { color: var(--c); } .tag.f { color: var(--f); }
dl.facts { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .2rem 1.2rem; font-size: .9rem; }
dl.facts dt { color: var(--soft); }
dl.facts dd { margin: 0; overflow-wrap: anywhere; }
dl.terms dt { font-weight: 600; margin-top: .55rem; }
dl.terms dd { margin: 0; color: var(--soft); max-width: 52rem; }
details > summary { cursor: pointer; color: var(--accent); margin: .6rem 0; }
footer { border-top: 1px solid var(--line); color: var(--soft); font-size: .82rem; padding: 1rem 0 2rem; }
@media (max-width: 600px) { .wrap { padding: 0 .9rem; } header { padding: 1.3rem 0 1.1rem; }
  header h1 { font-size: 1.35rem; } .card { flex: 1 1 40%; min-width: 0; } dl.facts { display: block; }
  dl.facts dd { margin-bottom: .4rem; } figure img { padding: .3rem; } }
@media print { :root { color-scheme: light; --ink: #000; --soft: #333; --line: #ccc; --tint: #fff; --paper: #fff;
    --rule: #888; --accent: #003f66; --good: #00573e; --bad: #7a2e00; --pale: #555; }
  nav, .find { display: none; } section, figure, tr { break-inside: avoid; } section { margin: 1rem 0; }
  .tall { max-height: none; overflow: visible; } .scroll { overflow: visible; } table { font-size: 7.5pt; }
  th, td { padding: .15rem .3rem; white-space: normal; } th button::after { content: none; }
  header { color: #000; background: none; padding: 0; } header p { color: #333; } }
"""

SCRIPT = """
"use strict";
function number(text) {
  const plain = text.replace(/\\u2212/g, "-").replace(/[,%+\\s]/g, "");
  return plain !== "" && isFinite(plain) ? Number(plain) : NaN;
}
function shown(cell) { return cell ? (cell.dataset.value ?? cell.textContent).trim() : ""; }
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const rows = [...body.rows], text = head.classList.contains("text");
      const before = head.getAttribute("aria-sort");
      const up = before ? before === "descending" : text;
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const keys = new Map(rows.map((row, place) => {
        const value = shown(row.cells[column]);
        return [row, text ? [value === "\\u2013", value, place] : [isNaN(number(value)), number(value), place]];
      }));
      rows.sort((a, b) => {
        const one = keys.get(a), other = keys.get(b);
        if (one[0] || other[0]) return one[0] - other[0] || one[2] - other[2];
        const order = text ? one[1].localeCompare(other[1], "en", {numeric: true}) : one[1] - other[1];
        return (up ? order : -order) || one[2] - other[2];
      });
      body.append(...rows);
    });
  });
}
for (const field of document.querySelectorAll("input[data-table]")) {
  const rows = [...document.getElementById(field.dataset.table).tBodies[0].rows];
  const told = field.parentElement.querySelector("output");
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\\s+/).filter(Boolean);
    let count = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every(word => text.includes(word));
      count += !row.hidden;
    }
    told.textContent = words.length ? `${count} of ${rows.length}` : "";
  });
}
"""
