"use strict";
// Without this script everything is there but the filter.
const filter = document.querySelector("form.filter");
if (filter) {
  const cards = [...document.querySelectorAll("article[data-kinds]")];
  const texts = new Map(cards.map((card) => [card, card.textContent.toLowerCase()]));
  const said = filter.querySelector("output");
  const apply = () => {
    const words = filter.elements.words.value.toLowerCase().split(/\s+/).filter(Boolean);
    const kind = filter.elements.kind.value;
    let shown = 0;
    for (const card of cards) {
      const fits = (!kind || card.dataset.kinds.split(" ").includes(kind))
        && words.every((word) => texts.get(card).includes(word));
      card.hidden = !fits;
      shown += fits;
    }
    said.value = `${shown} of ${cards.length} shown`;
  };
  filter.addEventListener("input", apply);
  filter.addEventListener("submit", (event) => event.preventDefault());
  // A link to a study that the filter hides shows it again.
  window.addEventListener("hashchange", () => {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (target && target.hidden) {
      filter.reset();
      apply();
      target.scrollIntoView();
    }
  });
  filter.hidden = false;
  apply();
}
// Where a film speaks for another sentence: shown while the pointer or the keyboard is on the sentence.
for (const sentence of document.querySelectorAll("[data-map]")) {
  const map = document.getElementById(sentence.dataset.map);
  if (!map) continue;
  const show = (seen) => () => map.setAttribute("visibility", seen ? "visible" : "hidden");
  for (const event of ["mouseenter", "focus"]) sentence.addEventListener(event, show(true));
  for (const event of ["mouseleave", "blur"]) sentence.addEventListener(event, show(false));
}
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") {
    for (const film of document.querySelectorAll("details.film[open]")) film.open = false;
  }
});
