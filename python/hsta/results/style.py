"""How pages look, on paper and in the dark too. Importing this loads no library."""

# Pictures are drawn in dark on white; in the dark their lightness is turned over and their hues stay.
STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  color: #1a1a1a; background: #fff; overflow-wrap: break-word; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9rem; }
th, td { padding: 0.25rem 0.7rem; border-bottom: 1px solid #ccc; text-align: left; vertical-align: top; }
td.number, th.number { text-align: right; white-space: nowrap; }
figure { margin: 1rem 0; } figcaption, .note { color: #555; font-size: 0.9rem; }
svg { max-width: 100%; height: auto; }
.moments { display: flex; flex-wrap: wrap; gap: 0.8rem; font-size: 0.9rem; margin-bottom: 0.5rem; }
.moments div { width: min(8rem, 30%); line-height: 1.3; }
.warning { border-left: 4px solid #d1681c; padding-left: 0.8rem; font-weight: 600; }
.wide { overflow-x: auto; }
@media screen and (prefers-color-scheme: dark) {
  body { color: #e6e6e6; background: #161616; } th, td { border-color: #444; } figcaption, .note { color: #aaa; }
  svg { filter: invert(0.91) hue-rotate(180deg); } svg.face { filter: none; }
}
@media print {
  body { max-width: none; margin: 0; font-size: 10pt; } .wide { overflow: visible; }
  table { font-size: 8pt; } th, td { padding: 0.15rem 0.35rem; } td.number, th.number { white-space: normal; }
  .words td { overflow-wrap: anywhere; }
  figure, tr { break-inside: avoid; } h2 { break-after: avoid; } thead { display: table-header-group; }
}
"""
