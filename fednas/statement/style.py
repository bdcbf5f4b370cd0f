"""How a statement's page looks: light and dark, on paper, and on a phone."""

from typing import Final

STYLE: Final = """
:root{color-scheme:light dark;--paper:#fff;--ink:#1c2126;--soft:#5a646e;--rule:#dde2e7;--wash:#f4f6f8;
--accent:#14539a;--bad:#a3140f;--bad-wash:#fdeceb;--s0:#14539a;--s1:#b25d00;--s2:#1c7a4a}
@media (prefers-color-scheme:dark){:root{--paper:#14181c;--ink:#e4e8ec;--soft:#9aa5b0;--rule:#2d343b;
--wash:#1c2228;--accent:#7fb4f0;--bad:#ff8f86;--bad-wash:#3a1715;--s0:#7fb4f0;--s1:#f0a65a;--s2:#6cc895}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:820px;margin:0 auto;padding:56px 24px 72px}
h1{font-size:30px;line-height:1.2;margin:0;font-weight:650;letter-spacing:-.01em;overflow-wrap:anywhere}
h2{font-size:19px;margin:52px 0 12px;font-weight:650;letter-spacing:-.005em}
h3{font-size:15px;margin:26px 0 8px;font-weight:600}
p{margin:0 0 12px;max-width:68ch}
.eyebrow{color:var(--soft);font-size:14px;margin:0 0 6px}
.note,.caption{color:var(--soft);font-size:14px}
dl.facts{display:grid;grid-template-columns:150px 1fr;gap:7px 20px;margin:0}
dl.facts dt{color:var(--soft)}
dl.facts dd{margin:0;max-width:64ch;overflow-wrap:anywhere}
header dl.facts{margin-top:18px}
.claim{margin:34px 0 0;padding:22px 26px 24px;background:var(--wash);border-radius:10px}
.claim .number{font-size:40px;line-height:1.15;font-weight:650;margin:0 0 2px;letter-spacing:-.02em;
font-variant-numeric:tabular-nums}
.claim .number small{font-size:20px;font-weight:500;color:var(--soft);letter-spacing:0;white-space:nowrap}
.claim p{margin:8px 0 0}
.bad{color:var(--bad);font-weight:600}
dl.facts dd.bad{color:var(--bad)}
p.after{margin-top:16px}
.bar{height:8px;border-radius:4px;background:var(--rule);margin:16px 0 6px;overflow:hidden}
.bar i{display:block;height:100%;background:var(--accent);border-radius:4px}
.claim.infinite{background:var(--bad-wash);border:2px solid var(--bad)}
.claim.infinite .number{color:var(--bad)}
.claim.infinite .number small{color:var(--bad)}
.wide{overflow-x:auto;margin:0 0 10px}
table{border-collapse:collapse;width:100%;font-size:14.5px;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:7px 18px 7px 0;border-bottom:1px solid var(--rule);vertical-align:baseline}
th{font-weight:600;color:var(--soft);font-size:13.5px;border-bottom-color:var(--soft)}
th:last-child,td:last-child{padding-right:0}
.n{text-align:right}
td.n{white-space:nowrap}
table.plan th{white-space:nowrap}
table.plan td{min-width:52px}
table.plan td:nth-child(2){min-width:190px}
th.over{text-align:center;border-bottom:1px solid var(--rule);padding-bottom:4px}
th.none{border-bottom:0}
table.small{width:auto;min-width:300px}
table.small th,table.small td{padding-right:44px}
tr.most td{font-weight:650}
tr.begin td{border-top:1px solid var(--soft)}
code,pre{font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace}
code{overflow-wrap:anywhere}
pre{margin:0 0 10px;padding:12px 14px;background:var(--wash);border-radius:8px;white-space:pre-wrap;
overflow-wrap:anywhere}
ul{margin:0;padding-left:20px}
li{margin:0 0 6px;max-width:66ch}
.on-phones{display:none}
figure{margin:18px 0 14px}
svg{display:block;width:100%;height:auto;overflow:visible}
svg text{font:12.5px system-ui,-apple-system,"Segoe UI",Roboto,Arial,sans-serif;fill:var(--soft)}
svg .grid{stroke:var(--rule);stroke-width:1}
svg .cap{stroke:var(--bad);stroke-width:1.5;stroke-dasharray:5 4}
svg .cap-text{fill:var(--bad)}
svg .line{fill:none;stroke-width:2;stroke-linejoin:round}
svg .line.s0{stroke:var(--s0)}svg .line.s1{stroke:var(--s1)}svg .line.s2{stroke:var(--s2)}
svg .label{font-weight:600}
svg .label.s0{fill:var(--s0)}svg .label.s1{fill:var(--s1)}svg .label.s2{fill:var(--s2)}
svg .name{fill:var(--ink);font-weight:600}
svg .shown{fill:var(--s0)}svg .shown.b1{fill:var(--s2)}
svg .shown.b2{fill:var(--s1)}svg .shown.over{fill:var(--bad)}
svg .on-bar{fill:var(--ink);paint-order:stroke;stroke:var(--paper);stroke-width:7px;
stroke-linejoin:round;font-size:12px;font-variant-numeric:tabular-nums}
tr.fails td{color:var(--bad);font-weight:600}
td.none{color:var(--soft)}
table.matrix{margin-bottom:6px}
details{margin:14px 0 0}
summary{cursor:pointer;color:var(--accent);font-size:14.5px}
details .wide{margin-top:8px}
table.every{font-size:13px}
table.every td:nth-child(3){min-width:180px}
table.every td:nth-child(4){min-width:220px;color:var(--soft);overflow-wrap:anywhere}
.multiples{display:grid;grid-template-columns:repeat(auto-fill,minmax(300px,1fr));
gap:22px 28px;margin:16px 0 0}
.multiples figure{margin:0;break-inside:avoid}
.multiples figcaption{font-weight:600;font-size:14.5px;margin:0 0 4px;overflow-wrap:anywhere}
table.sites td.share{width:26%;min-width:90px}
table.sites .bar{margin:0;display:block}
table.sites td{vertical-align:middle}
table.sites td:first-child{overflow-wrap:anywhere;min-width:110px}
tr.infinite .bar i{background:var(--bad)}
tr.infinite td.n{color:var(--bad);font-weight:600}
a{color:var(--accent);text-underline-offset:2px}
footer{margin-top:56px;padding-top:14px;border-top:1px solid var(--rule)}
@media (max-width:560px){
main{padding:32px 18px 56px}
h1{font-size:25px}
dl.facts{grid-template-columns:1fr;gap:0}
dl.facts dd{margin-bottom:10px}
.claim{padding:18px 18px 20px}
.claim .number{font-size:33px}
.claim .number small{display:block;font-size:17px;margin-top:2px;white-space:normal}
th,td{padding-right:14px}
figure .wide svg{min-width:600px}
.on-screens{display:none}
.on-phones{display:block}
table.sites th:nth-child(2),table.sites td.share{display:none}
}
@media print{
:root{--paper:#fff;--ink:#000;--soft:#444;--rule:#bbb;--wash:#f4f4f4;--accent:#14539a;--bad:#a3140f;
--bad-wash:#fff;--s0:#14539a;--s1:#b25d00;--s2:#1c7a4a}
@page{margin:18mm 16mm}
body{font-size:10.5pt}
main{max-width:none;padding:0}
h2{break-after:avoid;margin-top:26px}
h3{break-after:avoid}
figure,.claim,tr,pre,dl.facts{break-inside:avoid}
.wide{overflow:visible}
details::details-content{content-visibility:visible;block-size:auto}
svg .shown,.bar,.bar i{print-color-adjust:exact;-webkit-print-color-adjust:exact}
}
"""
