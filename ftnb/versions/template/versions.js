
"use strict";
(() => {
  const all = q => [...document.querySelectorAll(q)];
  const remembered = () => { try { return localStorage.getItem("ftnb-theme"); } catch { return null; } };
  const remember = v => { try { localStorage.setItem("ftnb-theme", v); } catch { /* private window */ } };
  all("input[name=theme]").forEach(t => { t.checked = t.value === (remembered() || "auto"); t.onchange = () => remember(t.value); });
  all("nav.contents a").forEach(a => a.addEventListener("click", () => { const open = document.getElementById("open-contents"); if (open) open.checked = false; }));
  const reveal = () => {
    const there = document.getElementById(location.hash.slice(1)), card = there && there.closest("details");
    if (card && !card.open) { card.open = true; there.scrollIntoView(); }
  };
  addEventListener("hashchange", reveal);
  reveal();
})();
