"""The page's style sheet and its one script: both inside the page, so that it can be mailed and kept."""

# Colours: Okabe and Ito's set for colour-blind readers, darkened on paper and lightened at night until text and lines
# have contrast enough; kept lines differ in lightness too, floors and ceilings in dashes.
CSS = """
:root{color-scheme:light dark;--paper:#fff;--ink:#1a1f25;--soft:#5a6571;--hair:#e2e6ea;--card:#f7f8fa;--first:#0068ad;
--second:#00805f;--third:#a24f8b;--alarm:#b9450b;--watch:#8a6100;--good:#00704f;--undone:#a3abb4;--level:#5a6571}
@media (prefers-color-scheme:dark){:root{--paper:#14171b;--ink:#e5e9ed;--soft:#9aa6b2;--hair:#2c333a;--card:#1b2026;
--first:#5fb6f0;--second:#35c79d;--third:#e09cc9;--alarm:#f4935a;--watch:#e3b341;--good:#41c99f;--undone:#66717c;
--level:#9aa6b2}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",Arial,sans-serif;font-variant-numeric:tabular-nums}
main{max-width:1180px;margin:0 auto;padding:36px 28px 56px}
h1{font-size:26px;line-height:1.25;font-weight:650;letter-spacing:-.01em;margin:0;overflow-wrap:anywhere}
h2{font-size:18px;line-height:1.3;font-weight:650;margin:44px 0 12px}
h3{font-size:14px;line-height:1.4;font-weight:650;margin:0}
.log-switch~h3{padding-right:92px}
h3 small{font-size:13px;font-weight:400;color:var(--soft)}
p{margin:0 0 10px;max-width:92ch}
p.absent,.soft{color:var(--soft)}
code{font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;overflow-wrap:anywhere}
header .line{display:flex;flex-wrap:wrap;align-items:center;gap:6px 14px}
header .when{color:var(--soft);font-size:13px;margin:4px 0 0}
.state{font-size:13px;font-weight:650;padding:2px 10px;border-radius:99px;border:1.5px solid currentColor}
.finished{color:var(--good)}.running{color:var(--first)}.stopped,.interrupted{color:var(--watch)}.failed{color:var(--alarm)}
.why{margin:12px 0 0}
.bar{height:4px;border-radius:2px;background:var(--hair);margin:18px 0 0;overflow:hidden}
.bar{position:relative}
.bar b{position:absolute;top:0;height:100%;width:2px;background:var(--paper)}
.bar i{display:block;height:100%;background:var(--first)}
dl.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:18px 24px;margin:20px 0 0}
.tiles dt{font-size:13px;color:var(--soft)}
.tiles dd{margin:0;font-size:21px;line-height:1.35;font-weight:600;letter-spacing:-.01em}
.tiles dd small{display:block;font-size:13px;line-height:1.4;font-weight:400;letter-spacing:0;color:var(--soft)}
.verdict{margin:28px 0 0;padding:14px 18px;border-left:4px solid var(--hair);background:var(--card);
border-radius:0 6px 6px 0}
.verdict strong{display:block;font-size:16px;margin-bottom:2px}
.verdict p:last-child{margin:0}
.verdict.good{border-color:var(--good)}.verdict.watch{border-color:var(--watch)}.verdict.alarm{border-color:var(--alarm)}
.verdict.watch strong{color:var(--watch)}.verdict.alarm strong{color:var(--alarm)}
.charts{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:34px 40px}
figure.chart{margin:0;position:relative;min-width:0}
.chart .note{font-size:13px;color:var(--soft);margin:4px 0 0}
.chart.empty .absent{font-size:13px}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:0 12px;margin:2px 12px 20px 0;padding:0;font-size:13px;
color:var(--soft)}
.legend.shared{margin:0 0 22px;gap:0 18px}
.legend b{color:var(--ink);font-weight:600}
.legend .at{margin-left:auto}
.key{display:inline-block;width:14px;height:0;border-top:2.5px solid;margin-right:5px;vertical-align:.28em}
.key.first{color:var(--first)}.key.second{color:var(--second)}.key.third{color:var(--third)}.key.undone{color:var(--undone)}
.key.raw{opacity:.45}
.key.phase{height:12px;width:0;border:0;border-left:1.5px solid var(--level);margin:0 9px 0 7px;vertical-align:-2px}
.key.start{height:12px;width:0;border:0;border-left:1.5px dashed var(--level);margin:0 9px 0 7px;vertical-align:-2px}
.key.floor{color:var(--alarm);border-top:2px dashed}.key.ceiling{color:var(--level);border-top:2px dotted}
.plot{position:relative;height:190px;margin:0 12px 24px 46px;touch-action:pan-y}
.panel,.panel svg{position:absolute;inset:0;width:100%;height:100%}
.panel svg{display:block;overflow:hidden}
.panel path{fill:none;vector-effect:non-scaling-stroke;stroke-linejoin:round;stroke-linecap:round;stroke-width:1.75px}
.panel .grid{stroke:var(--hair);stroke-width:1px}
.panel .first{stroke:var(--first)}.panel .second{stroke:var(--second)}.panel .third{stroke:var(--third)}
.panel .undone{stroke:var(--undone);stroke-width:1.25px}
.panel .raw{stroke-width:1px;opacity:.38}
.panel .shade{fill:var(--undone);opacity:.16}
.panel .start{stroke:var(--level);stroke-width:1px;stroke-dasharray:3 4;stroke-linecap:butt}
.panel .phase{stroke:var(--level);stroke-width:1px;stroke-linecap:butt}
.panel .dot{stroke-width:6px}
.panel .floor{stroke:var(--alarm);stroke-width:1.5px;stroke-dasharray:6 5}
.panel .ceiling{stroke:var(--level);stroke-width:1.5px;stroke-dasharray:1 5}
.panel span{position:absolute;font-size:12px;line-height:1;color:var(--soft);white-space:nowrap;pointer-events:none}
.panel .y{right:100%;margin-right:8px;transform:translateY(-50%)}
.panel .x{top:100%;margin-top:8px;transform:translateX(-50%)}
.panel .attempt{bottom:100%;margin-bottom:3px;transform:translateX(-50%);pointer-events:auto}
.panel .name{bottom:100%;margin-bottom:2px;padding-right:6px;line-height:1.2;pointer-events:auto;font-weight:600;
overflow:hidden;text-overflow:ellipsis}
.cursor{position:absolute;top:0;bottom:0;width:1px;background:var(--ink);opacity:.55;pointer-events:none}
.log-switch{position:absolute;right:46px;top:3px;margin:2px;opacity:0}
.log-switch+label{position:absolute;right:12px;top:0;font-size:12px;line-height:18px;padding:0 8px;
border:1px solid var(--hair);border-radius:99px;color:var(--soft);cursor:pointer}
.log-switch:checked+label{color:var(--paper);background:var(--soft);border-color:var(--soft)}
.log-switch:focus-visible+label{outline:2px solid var(--first);outline-offset:1px}
.log-switch~.plot .log,.log-switch:checked~.plot .linear{display:none}
.log-switch:checked~.plot .log{display:block}
.wide{overflow-x:auto;margin:0 0 12px}
table{border-collapse:collapse;font-size:13.5px;line-height:1.45;width:100%}
th,td{text-align:left;vertical-align:top;padding:6px 18px 6px 0;border-bottom:1px solid var(--hair)}
th{font-weight:600;color:var(--soft);white-space:nowrap}
th.n,td.n{text-align:right;white-space:nowrap}
td.t{white-space:nowrap}
th.n,td.n,th.t,td.t{width:1%}
td.c{max-width:42ch}
td.c code{overflow-wrap:break-word}
td.long{min-width:20ch;overflow-wrap:anywhere}
tr>:last-child{padding-right:0}
details{margin:10px 0}
summary{cursor:pointer;font-size:14px;color:var(--soft)}
summary:hover{color:var(--ink)}
details[open]>summary{margin-bottom:8px}
footer{margin-top:52px;padding-top:14px;border-top:1px solid var(--hair);font-size:13px;color:var(--soft)}
@media (max-width:820px){.charts{grid-template-columns:minmax(0,1fr)}main{padding:22px 16px 40px}h2{margin-top:36px}
dl.tiles{grid-template-columns:repeat(2,minmax(0,1fr));gap:16px}.legend .at{margin-left:0}
.tiles dd{font-size:19px}td.long{min-width:34ch}}
@media print{:root{color-scheme:light;--paper:#fff;--ink:#000;--soft:#444;--hair:#d5d9dd;--card:#fff;--first:#0068ad;
--second:#00805f;--third:#a24f8b;--alarm:#b9450b;--watch:#8a6100;--good:#00704f;--undone:#a3abb4;--level:#444}
body{font-size:12px}main{max-width:none;padding:0 8px}
.charts{grid-template-columns:repeat(2,minmax(0,1fr));gap:22px 26px}
dl.tiles{grid-template-columns:repeat(3,minmax(0,1fr))}.wide{overflow:visible}table{font-size:10px}
td,th{padding-right:10px}td.t,th{white-space:normal}code{font-size:9px}td.long{min-width:0}
.plot{height:150px}figure.chart,.verdict,tr,dl.tiles{break-inside:avoid}h2{break-after:avoid}.log-switch+label{display:none}
*{-webkit-print-color-adjust:exact;print-color-adjust:exact}}
"""

# The values in the legends follow the pointer, at one step in all charts; without the script they are the last ones.
SCRIPT = """
(() => {
const data = JSON.parse(document.getElementById('curves').textContent);
const charts = [...document.querySelectorAll('figure[data-chart]')].map(figure => ({
  figure, data: data[figure.dataset.chart], plot: figure.querySelector('.plot'),
  cursor: figure.querySelector('.cursor'), at: figure.querySelector('.at'),
  values: [...figure.querySelectorAll('[data-curve] b')]}));
for (const c of charts) c.before = [c.at.textContent, c.values.map(v => v.textContent)];
const nearest = (xs, x) => {
  let low = 0, high = xs.length - 1;
  while (high - low > 1) { const mid = (low + high) >> 1; if (xs[mid] < x) low = mid; else high = mid; }
  return Math.abs(xs[low] - x) <= Math.abs(xs[high] - x) ? low : high;
};
const words = (v, digits) => Math.abs(v) > 0 && Math.abs(v) < 1e-3 ? v.toExponential(digits - 1).replace('e+', 'e')
  : v.toLocaleString('en-US', {minimumSignificantDigits: digits > 3 ? 1 : digits, maximumSignificantDigits: digits});
const show = step => {
  for (const c of charts) {
    const drawn = c.data.curves;
    const near = drawn.map(k => nearest(k.x, step));
    if (!drawn.length) continue;
    drawn.forEach((k, i) => { if (c.values[i]) c.values[i].textContent = words(k.y[near[i]], c.data.digits); });
    const at = drawn[0].x[near[0]];
    c.at.textContent = 'step ' + at.toLocaleString('en-US');
    c.cursor.hidden = false;
    c.cursor.style.left = 100 * at / c.data.last + '%';
  }
};
const rest = () => {
  for (const c of charts) {
    c.cursor.hidden = true;
    c.at.textContent = c.before[0];
    c.values.forEach((v, i) => { v.textContent = c.before[1][i]; });
  }
};
for (const c of charts) {
  c.plot.addEventListener('pointermove', event => {
    const box = c.plot.getBoundingClientRect();
    show(Math.min(1, Math.max(0, (event.clientX - box.left) / box.width)) * c.data.last);
  });
  c.plot.addEventListener('pointerleave', rest);
}
})();
"""
