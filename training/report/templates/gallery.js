"use strict";
// Filters, sorts and opens the pictures. Without it each still opens, below itself.

const root = document.documentElement;
const gallery = document.querySelector(".gallery");
const tiles = [...gallery.children];
const [classes, order, maps, count] = ["class", "order", "maps", "count"].map(
  (name) => document.getElementById(`gallery-${name}`),
);
const isSheet = matchMedia("(max-width: 60rem)"); // as in the style: the panel lies at the bottom
const HOVER_MS = 120; // a pointer on its way elsewhere opens nothing
const MARGIN_PX = 8;
let pinned = null; // opened by a click, a tap or a key: it stays open
let closing = false;
let hover = 0;

function close() {
  clearTimeout(hover);
  for (const tile of tiles) tile.open = false;
  pinned = null;
}

function open(tile) {
  close();
  tile.open = true;
  const panel = tile.querySelector(".panel");
  panel.removeAttribute("style");
  if (isSheet.matches) return;
  const at = tile.getBoundingClientRect();
  const right = root.clientWidth - at.right;
  panel.style[right > at.left ? "left" : "right"] = "100%";
  panel.style.maxWidth = `${Math.max(right, at.left) - MARGIN_PX}px`;
  const below = root.clientHeight - at.top - panel.offsetHeight - MARGIN_PX;
  panel.style.top = `${Math.max(MARGIN_PX - at.top, Math.min(0, below))}px`;
}

function dismiss() {
  const tile = tiles.find((each) => each.open);
  if (!tile) return;
  closing = true; // the focus returns, and does not open again
  if (tile.contains(document.activeElement)) tile.querySelector("summary").focus();
  closing = false;
  close();
}

function show() {
  close();
  const shown = tiles.filter((tile) => !classes.value || tile.dataset.class === classes.value);
  for (const tile of tiles) tile.hidden = !shown.includes(tile);
  const byRegret = (one, other) => order.value * (one.dataset.regret - other.dataset.regret);
  gallery.append(...[...tiles].sort(byRegret));
  gallery.classList.toggle("maps", Boolean(maps?.checked));
  count.value = shown.length === 1 ? "1 image" : `${shown.length} images`;
}

function step(tile, key) {
  const shown = [...gallery.children].filter((each) => !each.hidden);
  const next = shown[shown.indexOf(tile) + { ArrowLeft: -1, ArrowRight: 1 }[key]];
  next?.querySelector("summary").focus();
}

for (const tile of tiles) {
  const summary = tile.querySelector("summary");
  summary.addEventListener("click", (event) => {
    event.preventDefault();
    if (pinned === tile) return close();
    open(tile);
    pinned = tile;
  });
  summary.addEventListener("keydown", (event) => step(tile, event.key));
  summary.addEventListener("focus", () => {
    const isByKey = summary.matches(":focus-visible");
    if (isByKey && !closing && !isSheet.matches) open(tile);
  });
  tile.addEventListener("focusout", (event) => {
    if (event.relatedTarget && !tile.contains(event.relatedTarget)) close();
  });
  tile.addEventListener("pointerenter", (event) => {
    if (event.pointerType !== "mouse" || pinned || isSheet.matches) return;
    clearTimeout(hover);
    hover = setTimeout(() => tile.open || open(tile), HOVER_MS);
  });
  tile.addEventListener("pointerleave", (event) => {
    clearTimeout(hover);
    if (event.pointerType === "mouse" && !pinned) close();
  });
  tile.querySelector(".close").addEventListener("click", dismiss);
}
document.addEventListener("pointerdown", (event) => {
  if (pinned && !pinned.contains(event.target)) close();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") dismiss();
});
for (const control of [classes, order, maps]) control?.addEventListener("change", show);
root.classList.add("js");
show();
