
"use strict";
(() => {
  const all = q => [...document.querySelectorAll(q)];
  const remembered = () => { try { return localStorage.getItem("ftnb-theme"); } catch { return null; } };
  const remember = v => { try { localStorage.setItem("ftnb-theme", v); } catch { /* private window */ } };
  const themes = all("input[name=theme]");
  themes.forEach(t => { t.checked = t.value === (remembered() || "auto"); t.onchange = () => remember(t.value); });

  const button = document.getElementById("all-code");
  button.hidden = false;
  button.onclick = () => {
    const open = button.textContent.startsWith("Show");
    all("details.code").forEach(d => { d.open = open; });
    button.textContent = open ? "Hide all code" : "Show all code";
  };

  const links = new Map(all("nav.contents a").map(a => [a.hash.slice(1), a]));
  const marks = all("main [id]").filter(e => links.has(e.id) && e.id !== "report");
  const here = () => {
    const passed = marks.filter(e => e.getBoundingClientRect().top < 120);
    const now = passed.length ? passed[passed.length - 1].id : "";
    links.forEach((a, id) => { if (id === now) a.setAttribute("aria-current", "true"); else a.removeAttribute("aria-current"); });
  };
  addEventListener("scroll", here, { passive: true });
  here();

  const reveal = () => { const e = document.getElementById(location.hash.slice(1)); if (e && e.matches("details")) e.open = true; };
  addEventListener("hashchange", reveal);
  reveal();
  addEventListener("beforeprint", () => all("details.card").forEach(d => { d.open = true; }));
  links.forEach(a => a.addEventListener("click", () => { document.getElementById("open-contents").checked = false; }));
})();
