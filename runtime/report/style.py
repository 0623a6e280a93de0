"""How the report looks: colours for light and dark, layout for desks and phones, and the crosshair.

What came is drawn in ink, what did not in reds that also differ by pattern, filled places in violet, labels in
colours that colour-blind readers tell apart. Nothing is loaded from anywhere.
"""

# Labels in the order of the bundle; chosen to differ in lightness as well as in hue.
LABEL_COLOURS = (
    ("#9aa0a8", "#7d848e", "#1d1b19"),
    ("#1f6fb5", "#5aa9ea", "#ffffff"),
    ("#e0890c", "#f0a53a", "#1d1b19"),
    ("#0a8067", "#37c79d", "#ffffff"),
    ("#b34a8f", "#e083bd", "#ffffff"),
    ("#c8452c", "#f07a61", "#ffffff"),
    ("#8fa72a", "#a9c53d", "#1d1b19"),
    ("#5b4bb5", "#9d8ff0", "#ffffff"),
)  # (on light paper, on dark paper, words on the first; on the second words are dark)

STATES = {
    "observed": "observed",
    "damaged": "damaged: decoded from a broken reference",
    "late": "late: came after its time to play",
    "lost": "lost: never came",
    "shed": "shed: not encoded, to keep up",
}

CSS = """
:root{color-scheme:light dark;--paper:#faf8f5;--card:#fff;--ink:#1d1b19;--soft:#5f5a53;--line:#e7e2da;--track:#f1ede7;
--came:#4a4f57;--miss:#cf3f2e;--miss-soft:#f3c3bb;--fill-0:#6a4fc4;--fill-1:#9a86dd;--fill-2:#c0b3ec;--good:#0a7f5f;
--shadow:0 1px 2px rgba(60,45,20,.06),0 6px 22px rgba(60,45,20,.05)}
@media(prefers-color-scheme:dark){:root{--paper:#121316;--card:#1a1c20;--ink:#eeebe6;--soft:#a5a19a;--line:#2c2f35;
--track:#24272c;--came:#b9bec7;--miss:#ff7a66;--miss-soft:#5d2a24;--fill-0:#a491f5;--fill-1:#7d6bcb;--fill-2:#58498f;
--good:#4fd0a5;--shadow:none}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",Arial,sans-serif;font-variant-numeric:tabular-nums}
main{max-width:1080px;margin:0 auto;padding:36px 24px 72px}
header{display:flex;flex-wrap:wrap;gap:4px 14px;align-items:center;margin-bottom:10px}
header svg{width:42px;height:26px;flex:none}
header .word{font:600 17px/1 Georgia,"Times New Roman",serif;font-style:italic;letter-spacing:.01em}
h1{font-size:27px;line-height:1.2;font-weight:650;letter-spacing:-.015em;margin:2px 0 4px;overflow-wrap:anywhere}
h2{font-size:17px;font-weight:650;margin:0 0 2px;letter-spacing:-.005em}
h3{font-size:14px;font-weight:600;margin:0}
p{margin:0}
.sub{color:var(--soft);overflow-wrap:anywhere}
.lead{font-size:17px;max-width:46em;margin:18px 0 22px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin:0 0 14px;padding:0}
.tile{background:var(--card);border:1px solid var(--line);border-radius:14px;padding:14px 16px 13px;
box-shadow:var(--shadow)}
.tile dt{color:var(--soft);font-size:13px;margin:0}
.tile dd{margin:0;font-size:27px;line-height:1.25;font-weight:650;letter-spacing:-.02em}
.tile dd span.one{display:inline-block;white-space:nowrap;margin-right:10px}
.tile dd small{font-size:15px;font-weight:500;letter-spacing:0;color:var(--soft)}
.tile .note{font-size:13px;font-weight:400;letter-spacing:0;color:var(--soft);line-height:1.45;display:block}
section{background:var(--card);border:1px solid var(--line);border-radius:16px;padding:22px 24px 24px;margin-top:16px;
box-shadow:var(--shadow)}
section>p.sub{font-size:13.5px;max-width:62em;margin-bottom:14px}
.row{display:grid;grid-template-columns:128px 1fr;gap:0 14px;align-items:center;margin-top:7px}
.row>.name{font-size:13px;color:var(--soft);line-height:1.25;text-align:right}
.row>.name b{color:var(--ink);font-weight:600}
.group{margin-top:20px}
.group>.row:first-child{margin-top:0}
.plot{position:relative;min-width:0}
.plot::after{content:"";position:absolute;top:-4px;bottom:-4px;left:var(--x,0);width:1px;background:var(--ink);
opacity:var(--on,0);pointer-events:none}
.strip{position:relative;height:22px;background:var(--track);border-radius:5px;overflow:hidden}
.strip.thin{height:9px;border-radius:3px}
.strip.tall{height:26px}
.strip.wrong{height:5px;border-radius:2px;background:none}
.area+.strip{margin-top:3px}.strip+.strip{margin-top:3px}
.strip i{position:absolute;top:0;bottom:0;display:block}
.strip i span{position:absolute;inset:0;padding:0 7px;font:600 12px/26px system-ui,sans-serif;font-style:normal;
white-space:nowrap;overflow:hidden;text-overflow:ellipsis}
.s-observed{background:var(--came)}
.s-lost{background:var(--miss-soft)}
.s-damaged{background:repeating-linear-gradient(135deg,var(--miss) 0 3px,var(--miss-soft) 3px 6px)}
.s-late{background:radial-gradient(circle at 3px 3px,var(--miss) 1.5px,transparent 1.8px) 0 0/6px 6px,var(--miss-soft)}
.s-shed{background:repeating-linear-gradient(90deg,var(--miss) 0 1px,var(--miss-soft) 1px 5px)}
.s-abstained{background:repeating-linear-gradient(135deg,transparent 0 4px,var(--line) 4px 6px)}
.s-flag{background:var(--soft)}
.f0{background:var(--fill-0)}.f1{background:var(--fill-1)}.f2{background:var(--fill-2)}
.s-wrong{background:var(--miss)}
svg.area{display:block;width:100%;background:var(--track);border-radius:5px}
svg.area .grid{stroke:var(--ink);stroke-opacity:.13;stroke-width:1;vector-effect:non-scaling-stroke}
svg.area .curve{fill:none;stroke-width:1.8;vector-effect:non-scaling-stroke;stroke-linejoin:round}
svg.area .break{stroke:var(--ink);stroke-width:1;stroke-dasharray:3 3;vector-effect:non-scaling-stroke}
.ticks{position:relative;height:18px;font-size:12px;color:var(--soft)}
.ticks span{position:absolute;transform:translateX(-50%);white-space:nowrap}
.ticks span:first-child{transform:none}
.ticks span.last{transform:translateX(-100%)}
.legend{display:flex;flex-wrap:wrap;gap:5px 16px;font-size:13px;color:var(--soft);margin:2px 0 4px;padding:0;
list-style:none}
.legend i{display:inline-block;width:14px;height:14px;border-radius:3.5px;margin-right:6px;vertical-align:-2.5px;
box-shadow:inset 0 0 0 1px rgba(128,128,128,.22)}
.legend i.line{height:0;border-top:2.5px solid;border-radius:0;vertical-align:4px;width:18px;box-shadow:none}
.readout{position:fixed;left:50%;bottom:14px;transform:translate(-50%,8px);width:max-content;
max-width:calc(100vw - 28px);padding:8px 14px;border-radius:11px;
background:var(--ink);color:var(--paper);font-size:13px;line-height:1.5;opacity:0;
transition:opacity .12s,transform .12s;pointer-events:none;box-shadow:0 6px 24px rgba(0,0,0,.25);z-index:2}
.readout.on{opacity:.97;transform:translate(-50%,0)}
.readout b{font-weight:650;margin-right:12px}
.readout span{margin-right:12px;white-space:nowrap;display:inline-block}
.timeline:focus-visible{outline:2px solid var(--fill-0);outline-offset:6px;border-radius:6px}
.film{display:flex;gap:4px;overflow:hidden}
.film img{flex:1 1 0;min-width:0;height:62px;object-fit:cover;border-radius:4px}
.wide{overflow-x:auto;margin:0 -4px;padding:0 4px}
table{border-collapse:collapse;width:100%;font-size:14px}
th,td{padding:7px 12px 7px 0;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
th:first-child,td:first-child{text-align:left}
thead th{color:var(--soft);font-weight:500;font-size:13px;white-space:normal;vertical-align:bottom;line-height:1.3}
tbody tr:last-child th,tbody tr:last-child td{border-bottom:0}
tbody th{font-weight:500}
td.best{font-weight:700;color:var(--good)}
td.zero{color:var(--soft);opacity:.6}
.meter{display:block;height:9px;border-radius:3px;overflow:hidden;background:var(--track);display:flex;min-width:120px}
.meter i{display:block;height:100%}
.two{display:grid;grid-template-columns:1fr 1fr;gap:16px;align-items:start}
.two>section{min-width:0}
.check{color:var(--good);font-weight:600}
dl.card{display:grid;grid-template-columns:max-content 1fr;gap:5px 16px;margin:8px 0 0;font-size:14px}
dl.card dt{color:var(--soft)}
dl.card dd{margin:0;overflow-wrap:anywhere;min-width:0}
code,.mono{font:12.5px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
details{margin-top:12px;font-size:14px}
summary{cursor:pointer;color:var(--soft)}
pre{font:12px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;overflow-x:auto;background:var(--track);
border-radius:8px;padding:12px;margin:8px 0 0}
ul.events{margin:8px 0 0;padding:0;list-style:none;font-size:14px}
ul.events li{padding:4px 0;border-bottom:1px solid var(--line)}
ul.events li:last-child{border:0}
ul.events time{color:var(--soft);display:inline-block;min-width:4.4em}
footer{color:var(--soft);font-size:13px;margin-top:24px}
@media(max-width:760px){main{padding:22px 14px 48px}.two{grid-template-columns:1fr;gap:0}section{padding:17px 15px 18px;
border-radius:14px}.row{grid-template-columns:1fr;gap:2px}.row>.name{text-align:left}.row.axis>.name{display:none}
h1{font-size:23px}.lead{font-size:16px;margin:14px 0 18px}.tiles{grid-template-columns:1fr 1fr;gap:9px}
.tile{padding:11px 13px}.tile dd{font-size:23px}
.tile dd span.one{display:block}.strip i span{display:none}.meter{min-width:56px}table{font-size:13.5px}
th,td{padding-right:9px}th:last-child,td:last-child{padding-right:0}thead th{font-size:12.5px}}
.legend.inline{margin:4px 0 0}
@media print{body{background:#fff}section,.tile{box-shadow:none;break-inside:avoid}.readout{display:none}}
"""

# Moves one hairline through all plots of the timeline and says what stands there; the page reads well without it.
SCRIPT = """
(() => {
  const box = document.querySelector('.timeline'), out = document.querySelector('.readout');
  const data = JSON.parse(document.getElementById('clips').textContent);
  if (!box || !data.at.length) return;
  let place = 0;
  const show = (i) => {
    place = Math.max(0, Math.min(data.at.length - 1, i));
    box.style.setProperty('--x', `${(place + .5) / data.at.length * 100}%`);
    box.style.setProperty('--on', '.55');
    out.replaceChildren();
    const add = (tag, text) => { const e = document.createElement(tag); e.textContent = text; out.append(e); };
    add('b', data.at[place]);
    for (const [name, values] of data.lines) if (values[place]) add('span', `${name} ${values[place]}`);
    out.classList.add('on');
  };
  const hide = () => { box.style.setProperty('--on', '0'); out.classList.remove('on'); };
  box.addEventListener('pointermove', (e) => {
    const plot = box.querySelector('.plot').getBoundingClientRect();
    const share = (e.clientX - plot.left) / plot.width;
    if (share >= 0 && share <= 1) show(Math.floor(share * data.at.length)); else hide();
  });
  box.addEventListener('pointerleave', hide);
  box.addEventListener('keydown', (e) => {
    const step = {ArrowRight: 1, ArrowLeft: -1, PageDown: 10, PageUp: -10}[e.key];
    if (step) { show(place + step); e.preventDefault(); } else if (e.key === 'Escape') hide();
  });
})();
"""

# Two notes under one slur: legato.
LOGO = (
    '<svg viewBox="0 0 84 52" aria-hidden="true"><path d="M12 20C26 2 58 2 72 20" fill="none" stroke="currentColor" '
    'stroke-width="4.5" stroke-linecap="round"/><ellipse cx="14" cy="40" rx="9.5" ry="7.5" fill="currentColor" '
    'transform="rotate(-20 14 40)"/><ellipse cx="42" cy="40" rx="9.5" ry="7.5" fill="none" stroke="var(--fill-0)" '
    'stroke-width="3.5" stroke-dasharray="5 3.4" transform="rotate(-20 42 40)"/><ellipse cx="70" cy="40" rx="9.5" '
    'ry="7.5" fill="currentColor" transform="rotate(-20 70 40)"/></svg>'
)


def label_rules(count: int) -> str:
    """CSS for the labels' colours in light and dark."""
    chosen = [LABEL_COLOURS[i % len(LABEL_COLOURS)] for i in range(count)]
    light = "".join(f"--l{i}:{look[0]};--w{i}:{look[2]};" for i, look in enumerate(chosen))
    dark = "".join(f"--l{i}:{look[1]};--w{i}:#14161a;" for i, look in enumerate(chosen))
    use = "".join(f".l{i}{{background:var(--l{i});fill:var(--l{i});color:var(--w{i})}}" for i in range(count))
    return f":root{{{light}}}@media(prefers-color-scheme:dark){{:root{{{dark}}}}}{use}"
