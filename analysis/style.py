"""The style sheet of report.html: system fonts, one column on a phone, nothing lost in print."""

STYLE_SHEET = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 0 1rem 3rem; background: #fff; color: #1b1b1b;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 1.5rem 0 .5rem; }
h2 { font-size: 1.25rem; margin: 2.2rem 0 .6rem; padding-top: .6rem; border-top: 1px solid #d5d5d5; }
h3 { font-size: .92rem; margin: 0 0 .3rem; }
p { max-width: 48rem; margin: .6rem 0; }
.badge { display: inline-block; padding: .3rem .7rem; border-left: .4rem solid; font-weight: 600; }
.badge.rehearsal { background: #fdf3dc; border-color: #e69f00; }
.badge.run { background: #e5f2fa; border-color: #0072b2; }
.badge.evidence { background: #e0f3ec; border-color: #009e73; }
.answer { font-size: 1.12rem; line-height: 1.55; }
.note { color: #6b4a00; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1rem; font-size: .9rem; }
a { color: #005b8f; }
dl { display: grid; grid-template-columns: minmax(7rem, max-content) 1fr; gap: .2rem 1rem; margin: .6rem 0; }
dt { font-weight: 600; }
dd { margin: 0; }
.scroll { overflow-x: auto; margin: .4rem 0 .8rem; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
.caption { color: #444; font-size: .86rem; margin: .8rem 0 0; }
th, td { padding: .22rem .7rem .22rem 0; text-align: left; border-bottom: 1px solid #e6e6e6; white-space: nowrap; }
td.t { white-space: normal; min-width: 14rem; }
th { border-bottom: 1px solid #888; }
.n { text-align: right; }
.grid, .wide { display: grid; gap: 1.4rem 1.6rem; margin-top: 1rem; }
.grid { grid-template-columns: repeat(auto-fill, minmax(min(100%, 19rem), 1fr)); }
.wide { grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr)); }
figure { margin: 0; break-inside: avoid; }
figure svg { width: 100%; height: auto; display: block; }
figcaption { font-size: .8rem; color: #444; }
pre { background: #f5f5f5; padding: .7rem; overflow-x: auto; font-size: .85rem; white-space: pre-wrap; }
summary { cursor: pointer; }
@media (max-width: 30rem) {
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .5rem; }
}
@media print {
  @page { margin: 14mm; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav { display: none; }
  h2, h3 { break-after: avoid; }
  tr { break-inside: avoid; }
  .grid { grid-template-columns: 1fr 1fr; }
  .wide { grid-template-columns: 1fr; }
  .wide figure { max-width: 13cm; }
  .grid { gap: .8rem 1.2rem; }
  .grid figcaption { display: none; }
  .scroll { overflow: visible; }
  table { font-size: 7.5pt; }
  th, td { padding-right: .4rem; }
}
"""
