"use strict";
// Everything can be read without this script: it copies commands, filters, and lets arrow keys walk the matrix.
for (const button of document.querySelectorAll(".copy")) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    const text = button.previousElementSibling.textContent;
    try {
      await navigator.clipboard.writeText(text);
    } catch { // not where the page is a file, in some browsers
      const area = document.createElement("textarea");
      area.value = text;
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
      button.focus();
    }
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
}

const form = document.getElementById("filter");
const cells = [...document.querySelectorAll(".matrix li")].map((cell) => [cell, cell.textContent.trim().toLowerCase()]);
const failures = [...document.querySelectorAll("#failures ~ [data-verdict], .others > li")]
  .map((entry) => [entry, `${entry.dataset.verdict} ${entry.textContent}`.toLowerCase()]);
function filter() {
  const verdicts = [...form.querySelectorAll("[name=verdict]:checked")].map((box) => box.value.toLowerCase());
  const words = form.words.value.toLowerCase().split(/\s+/);
  const fits = (text) => verdicts.includes(text.split(" ", 1)[0]) && words.every((word) => text.includes(word));
  let shown = 0;
  for (const [cell, text] of cells) {
    cell.hidden = !fits(text);
    shown += !cell.hidden;
  }
  for (const [entry, text] of failures) entry.hidden = !fits(text);
  for (const body of document.querySelectorAll(".matrix tbody")) body.hidden = !body.querySelector("li:not([hidden])");
  form.querySelector("output").textContent = `${shown} of ${cells.length}`;
}
form.hidden = false;
form.addEventListener("input", filter);

// One stop for the tab key in each list; within it the arrow keys move.
const stop = (cell) => cell.querySelector("a") || cell;
for (const list of document.querySelectorAll(".matrix ul")) {
  [...list.children].forEach((cell, at) => { stop(cell).tabIndex = at ? -1 : 0; });
  list.addEventListener("keydown", (event) => {
    const all = [...list.children].filter((cell) => !cell.hidden);
    const at = all.findIndex((cell) => stop(cell) === document.activeElement);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: all.length - 1 }[event.key];
    if (at < 0 || to === undefined || !all[to]) return;
    event.preventDefault();
    stop(all[at]).tabIndex = -1;
    stop(all[to]).tabIndex = 0;
    stop(all[to]).focus();
  });
}
