"""The look of a report: one style sheet, for light and dark, telephones and wide screens, and paper."""

CSS = """
:root { color-scheme: light dark; --page: #fff; --card: #f6f7f9; --text: #1b1f24; --soft: #57606a; --line: #c3c9d1;
  --good: #1a7f4b; --warning: #8a5a00; --bad: #b3261e; --accent: #2f6fb5; --shade: 47, 126, 216; }
@media (prefers-color-scheme: dark) { :root { --page: #14171b; --card: #1d2127; --text: #e6e9ed; --soft: #a2abb6;
  --line: #454d57; --good: #5fce96; --warning: #e3b04b; --bad: #ff8a80; --accent: #7db4f0; --shade: 90, 160, 240; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 76rem; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0.4rem 0; }
h2 { font-size: 1.25rem; margin: 2.4rem 0 0.4rem; border-bottom: 1px solid var(--line); padding-bottom: 0.2rem; }
h3 { font-size: 1.05rem; margin: 1.6rem 0 0.5rem; }
p { margin: 0.5rem 0; max-width: 60rem; }
a { color: var(--accent); }
nav ul { display: flex; flex-wrap: wrap; gap: 0.2rem 1rem; list-style: none; margin: 0.6rem 0; padding: 0; }
.subtitle, figcaption, .note, .detail { color: var(--soft); font-size: 0.875rem; }
.say { border-left: 4px solid var(--line); background: var(--card); padding: 0.6rem 0.8rem; }
.say.good { border-color: var(--good); } .say.warning { border-color: var(--warning); }
.say.bad { border-color: var(--bad); font-weight: 600; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: 0.6rem; margin: 0.8rem 0; }
.tile { background: var(--card); border-radius: 6px; padding: 0.6rem 0.8rem; }
.tile .value { font-size: 1.5rem; font-weight: 650; line-height: 1.2; }
.tile .label { font-size: 0.875rem; }
.wide { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)); gap: 1rem 2rem;
  align-items: start; }
.scroll { overflow-x: auto; max-width: 100%; } .table { margin: 0.8rem 0; min-width: 0; }
.scroll:focus-visible { outline: 2px solid var(--accent); }
table { border-collapse: collapse; font-size: 0.875rem; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { text-align: left; vertical-align: top; padding: 0.3rem 0.6rem; border-bottom: 1px solid var(--line); }
thead th { border-bottom-width: 2px; vertical-align: bottom; } tbody th { font-weight: 500; }
.short { white-space: nowrap; }
td.prose { min-width: 13rem; } td.long { overflow-wrap: anywhere; min-width: 10rem; }
th.number, td.number { text-align: right; white-space: nowrap; }
td.good { color: var(--good); } td.warning { color: var(--warning); font-weight: 600; }
td.bad { color: var(--bad); font-weight: 600; }
figure { margin: 0.4rem 0; } figure svg { display: block; width: 100%; max-width: 36rem; height: auto; }
figure svg text { font-family: inherit !important; } figcaption strong { color: var(--text); }
.card { border-left: 4px solid var(--line); padding: 0.2rem 0 0.2rem 0.8rem; margin: 1rem 0; }
.card.good { border-color: var(--good); } .card.bad { border-color: var(--bad); }
.card h4 { margin: 0 0 0.3rem; font-size: 0.95rem; } .card p { font-size: 0.875rem; margin: 0.15rem 0; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: 0.4rem; max-width: 62rem; }
.panels figure { margin: 0; } .panels img { width: 100%; display: block; image-rendering: pixelated; }
.panels.photos img { image-rendering: auto; }
.legend { display: flex; flex-wrap: wrap; gap: 0.15rem 0.9rem; list-style: none; padding: 0; font-size: 0.8rem; }
.legend span { display: inline-block; width: 0.8em; height: 0.8em; margin-right: 0.35em;
  border: 1px solid var(--line); }
pre { overflow: auto; max-height: 30rem; background: var(--card); padding: 0.8rem; font-size: 0.8rem; }
@media (max-width: 30rem) { body { padding: 0.7rem; font-size: 15px; } th, td { padding: 0.3rem 0.4rem; }
  .panels { grid-template-columns: repeat(3, 1fr); } }
@media (max-width: 40rem) { table.stack thead { position: absolute; left: -999rem; }
  table.stack, .stack tbody, .stack tr, .stack th, .stack td { display: block; width: 100%; min-width: 0; }
  .stack tr { border-bottom: 1px solid var(--line); padding: 0.4rem 0; }
  .stack th, .stack td { border: 0; padding: 0.1rem 0; text-align: left; white-space: normal; }
  .stack th { font-weight: 650; } .stack td.empty { display: none; }
  .stack td::before { content: attr(data-label) ": "; color: var(--soft); font-weight: 400; } }
@media print { nav { display: none; } .scroll { overflow: visible; } }
""".strip()
