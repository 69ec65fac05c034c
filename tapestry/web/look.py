"""How the page looks, and the few lines that run in the browser."""

STYLE = """
:root {
  --back: #f5f6f8; --card: #ffffff; --text: #1b2330; --muted: #5a6675; --line: #e1e5ea;
  --accent: #2857b8; --good: #17704f; --good-back: #e2f4ec; --busy: #2857b8; --busy-back: #e6eefb;
  --warn: #8a5a00; --warn-back: #fdf1d8; --bad: #b3261e; --bad-back: #fce8e6;
  --idle: #4d5866; --idle-back: #eceff3;
}
:root[data-theme=dark] {
  --back: #11151b; --card: #191f27; --text: #e6eaf0; --muted: #9aa6b5; --line: #2b333e;
  --accent: #8fb3ff; --good: #6fd3a8; --good-back: #15362a; --busy: #8fb3ff; --busy-back: #1b2c4d;
  --warn: #f0c368; --warn-back: #3b2e12; --bad: #ff9c94; --bad-back: #46201d;
  --idle: #b0bac7; --idle-back: #262e38;
}
html { background: var(--back); scroll-padding-top: 4rem; }
body {
  margin: 0; background: var(--back); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "Noto Sans", sans-serif;
}
#app { display: none; }
.page { max-width: 72rem; margin: 0 auto; padding: 1.5rem 1.25rem 4rem; }
.page section { margin: 0 0 2rem; }
h1, h2 { font-weight: 650; letter-spacing: -.01em; line-height: 1.25; margin: 0; }
h1 { font-size: 1.75rem; } h2 { font-size: 1.15rem; margin: 0 0 .25rem; }
p { margin: 0; } code { font: .87em ui-monospace, "DejaVu Sans Mono", monospace; }
a { color: var(--accent); text-underline-offset: .15em; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; border-radius: 4px; }
.muted, .empty, .note { color: var(--muted); } .note { margin: 0 0 .75rem; max-width: 46rem; }
.good { color: var(--good); } .bad { color: var(--bad); } .reason { margin-left: .5rem; }
.skip { position: absolute; left: -99rem; } .skip:focus { left: 1rem; top: .5rem; z-index: 9; }
.bar {
  position: sticky; top: 0; z-index: 5; background: var(--card); border-bottom: 1px solid
  var(--line); display: flex; align-items: center; gap: .75rem 1.25rem; flex-wrap: wrap;
  padding: .6rem max(1.25rem, calc(50vw - 34.75rem));
}
.bar strong { font-size: 1rem; } .bar code { color: var(--muted); }
.bar nav { display: flex; gap: 1rem; margin-left: auto; }
.bar nav a { text-decoration: none; color: var(--text); white-space: nowrap; }
.bar nav a:hover { color: var(--accent); }
button, .button {
  font: inherit; color: var(--text); background: var(--card); border: 1px solid var(--line);
  border-radius: 8px; padding: .25rem .8rem; cursor: pointer;
}
button:hover { border-color: var(--accent); } button[disabled] { opacity: .45; cursor: default; }
.bar form { margin: 0; }
.hero {
  background: var(--card); border: 1px solid var(--line); border-left: 5px solid var(--tone);
  border-radius: 12px; padding: 1.25rem 1.5rem;
}
.hero.good { --tone: var(--good); } .hero.busy { --tone: var(--busy); }
.hero.warn { --tone: var(--warn); } .hero.bad { --tone: var(--bad); }
.hero.idle { --tone: var(--idle); }
.hero.good, .hero.bad { color: var(--text); }
.hero h1 { display: flex; gap: .7rem; align-items: baseline; }
.hero .dot {
  flex: none; width: .7rem; height: .7rem; border-radius: 50%; background: var(--tone);
}
.hero .detail { color: var(--muted); margin: .35rem 0 0; font-size: 1.02rem; }
.tiles {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(10.5rem, 1fr)); gap: 1.25rem;
  margin: 1.25rem 0 0; padding: 1.1rem 0 0; border-top: 1px solid var(--line);
}
.tile dt { color: var(--muted); font-size: .85rem; }
.tile dd { margin: 0; font-size: 1.45rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.tile p { color: var(--muted); font-size: .85rem; }
.card {
  background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  padding: 1rem 1.25rem 1.1rem;
}
.card > h2 { margin-bottom: .15rem; } .card .empty { padding: .5rem 0 0; }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); }
.two { gap: 1.25rem; }
.two > * { min-width: 0; }
.chart { height: 20rem; } .chart > div { height: 100%; width: 100%; }
.scroll { overflow: auto; max-height: 27rem; margin: 0 -1.25rem; padding: 0 1.25rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
caption { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
th, td { text-align: left; padding: .45rem .9rem .45rem 0; border-bottom: 1px solid var(--line); }
th, td { vertical-align: middle; }
tr:last-child > * { border-bottom: 0; }
thead th {
  position: sticky; top: 0; background: var(--card); color: var(--muted); font-weight: 500;
  font-size: .85rem; white-space: nowrap; z-index: 1;
}
tbody th { font-weight: 600; overflow-wrap: anywhere; }
td { overflow-wrap: anywhere; } td code, td time, .number { white-space: nowrap; }
.record td:last-child { min-width: 14rem; }
.chip {
  display: inline-block; border-radius: 99px; padding: .05rem .6rem; font-size: .85rem;
  white-space: nowrap; background: var(--idle-back); color: var(--idle);
}
.chip.good { background: var(--good-back); color: var(--good); }
.chip.busy { background: var(--busy-back); color: var(--busy); }
.chip.warn { background: var(--warn-back); color: var(--warn); }
.chip.bad { background: var(--bad-back); color: var(--bad); }
progress {
  appearance: none; border: 0; width: 6rem; height: .45rem; border-radius: 9px; overflow: hidden;
  background: var(--idle-back); vertical-align: middle; margin-right: .5rem;
}
progress::-webkit-progress-bar { background: var(--idle-back); }
progress::-webkit-progress-value { background: var(--accent); }
progress::-moz-progress-bar { background: var(--accent); }
.hero h1 > span:last-child { min-width: 0; }
.hero h1, .detail, .note, .digest, td > * { overflow-wrap: anywhere; }
ul { margin: .35rem 0 0; padding-left: 1.2rem; } li { overflow-wrap: anywhere; }
.pager { display: flex; gap: .5rem; margin-top: .75rem; }
.login { max-width: 22rem; margin: 12vh auto; display: grid; gap: .75rem; padding: 1.5rem; }
.login input { font: inherit; padding: .5rem .6rem; border: 1px solid #8a94a3; border-radius: 8px; }
.login .problem { color: var(--bad); } .login .problem:empty { display: none; }
footer { color: var(--muted); font-size: .85rem; }
@media (max-width: 44rem) {
  .page { padding: 1rem .75rem 3rem; } h1 { font-size: 1.3rem; }
  .bar { padding: .5rem .75rem; gap: .4rem .9rem; position: static; }
  .bar nav { order: 9; width: 100%; margin: 0; overflow-x: auto; }
  .hero { padding: 1rem; } .card { padding: .9rem; }
  .tiles { grid-template-columns: 1fr 1fr; gap: .9rem; } .tile dd { font-size: 1.2rem; }
  .scroll { margin: 0 -.9rem; padding: 0 .9rem; max-height: 32rem; }
  thead { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
  table, tbody, tr, th, td { display: block; }
  tr { border-bottom: 1px solid var(--line); padding: .5rem 0; } tr:last-child { border-bottom: 0; }
  tbody th, td { border: 0; padding: .1rem 0; }
  td { display: flex; gap: .75rem; justify-content: space-between; text-align: right; }
  td > * { min-width: 0; } td:empty { display: none; }
  td::before { content: attr(data-label); color: var(--muted); flex: none; }
  .record td:last-child { min-width: 0; }
  .reason { margin: 0; }
}
@media (prefers-reduced-motion: no-preference) {
  .hero.busy .dot, .hero.good .dot { animation: breathe 2.4s ease-in-out infinite; }
  @keyframes breathe { 50% { opacity: .35; } }
}
"""

SCRIPT = """
(() => {
  const stored = () => {
    try { return localStorage.getItem('tapestry-theme'); } catch { return null; }
  };
  const tell = (name, value) => window.emitEvent?.(name, value);
  const wish = matchMedia('(prefers-color-scheme: dark)');
  const root = document.documentElement;
  const apply = () => {
    root.dataset.theme = stored() || (wish.matches ? 'dark' : 'light');
    tell('theme');
  };
  window.tapestryColour = name => getComputedStyle(root).getPropertyValue(name).trim();
  window.tapestryTheme = () => {
    const next = root.dataset.theme === 'dark' ? 'light' : 'dark';
    try { localStorage.setItem('tapestry-theme', next); } catch { root.dataset.theme = next; }
    apply();
  };
  window.tapestryShow = parts => {
    for (const [name, content] of Object.entries(parts)) {
      const place = document.querySelector(`[data-part="${name}"]`);
      const box = place.querySelector('.scroll');
      const [top, left, hadFocus] = [box?.scrollTop, box?.scrollLeft, box?.matches(':focus')];
      place.innerHTML = content;
      const fresh = place.querySelector('.scroll');
      if (box && fresh) { fresh.scrollTop = top; fresh.scrollLeft = left; }
      if (hadFocus) fresh?.focus({preventScroll: true});
    }
  };
  wish.addEventListener('change', apply);
  document.addEventListener('visibilitychange', () => tell('seen', !document.hidden));
  apply();
})();
"""
