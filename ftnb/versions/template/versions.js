
"use strict";
(() => {
  const all = (q, e = document) => [...e.querySelectorAll(q)];
  const remembered = () => { try { return localStorage.getItem("ftnb-theme"); } catch { return null; } };
  const remember = v => { try { localStorage.setItem("ftnb-theme", v); } catch { /* private window */ } };
  all("input[name=theme]").forEach(t => { t.checked = t.value === (remembered() || "auto"); t.onchange = () => remember(t.value); });
  all("nav.contents a").forEach(a => a.addEventListener("click", () => { document.getElementById("open-contents").checked = false; }));

  const reveal = () => {
    const there = document.getElementById(decodeURIComponent(location.hash.slice(1))), card = there && there.closest("details");
    if (card && !card.open) { card.open = true; there.scrollIntoView(); }
  };
  addEventListener("hashchange", reveal);
  reveal();

  const input = document.getElementById("find");
  if (!input) return;
  input.closest("search").hidden = false;
  const said = document.getElementById("found");
  const studies = all("section.study").map(e => ({
    e, text: e.dataset.search.toLowerCase(),
    rows: all("[data-version]", e).map(r => ({ r, text: `${r.textContent} ${r.dataset.search}`.toLowerCase() })),
  }));
  const search = () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let found = 0;
    for (const s of studies) {
      let here = 0;
      for (const { r, text } of s.rows) {
        const hit = words.every(w => text.includes(w) || s.text.includes(w));
        r.hidden = !hit;
        here += hit;
      }
      all("table.versions", s.e).forEach(t => { t.hidden = !all("[data-version]", t).some(r => !r.hidden); });
      s.e.hidden = !here;
      found += here;
    }
    said.textContent = words.length ? `${found} found` : "";
  };
  input.addEventListener("input", search);
  addEventListener("keydown", e => {
    if (e.key === "/" && !e.target.closest("input")) { e.preventDefault(); input.focus(); }
    if (e.key === "Escape" && e.target === input) { input.value = ""; search(); }
  });
  search();
})();
