# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The report of a preflight as one page of HTML that needs nothing but a browser.

Everything that comes from a server or an inventory passes through :func:`text`. The page forbids itself every request
and every script but its own (Content-Security-Policy): it can be mailed and opened anywhere. Without scripts it is
complete, only unfiltered.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..module_utils.findings import SEVERITIES
from ..module_utils.progress import duration, size

STATES = {"ready": "Can migrate", "blocked": "Blocked", "done": "Done"}
# Figures of an estimate whose names say too little.
LABELS = {"seconds": "until in sync", "downtime_seconds": "downtime, at most", "rate_bytes_per_second": "rate"}
NAMES = {"blocker": "Blocker", "warning": "Warning", "note": "Note"}

STYLE = """
:root { color-scheme: light dark;
  --page: #f5f6f8; --card: #fff; --ink: #1b1f27; --soft: #5b6472; --line: #dfe3e9; --sunk: #eef0f4; --link: #0b5cad;
  --blocker: #b3261e; --blocker-soft: #fce8e6; --warning: #8a5a00; --warning-soft: #fdf0d5;
  --note: #40608a; --note-soft: #e6edf6; --ready: #1d7044; --ready-soft: #e0f2e7; }
@media (prefers-color-scheme: dark) { :root {
  --page: #12151b; --card: #1b1f27; --ink: #e8eaee; --soft: #a3acba; --line: #313846; --sunk: #252b36; --link: #8ab8f0;
  --blocker: #ff9d94; --blocker-soft: #46201d; --warning: #f2c265; --warning-soft: #3d2f10;
  --note: #a9c4e8; --note-soft: #23303f; --ready: #7fd6a3; --ready-soft: #173524; } }
* { box-sizing: border-box; }
html { scroll-padding-top: 9rem; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; overflow-wrap: anywhere; }
main, header { max-width: 68rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 2rem; }
h1 { font-size: 1rem; font-weight: 600; color: var(--soft); margin: 0; }
.verdict { font-size: clamp(1.6rem, 5vw, 2.3rem); line-height: 1.2; font-weight: 700; letter-spacing: -.02em;
  margin: .2rem 0 1rem; }
h2 { font-size: 1.15rem; margin: 2rem 0 .75rem; }
a { color: var(--link); }
.soft { color: var(--soft); }
.bar { display: flex; height: .7rem; border-radius: 1rem; overflow: hidden; gap: 2px; background: var(--sunk); }
.bar i { display: block; min-width: .35rem; }
i.ready { background: var(--ready); } i.blocked { background: var(--blocker); } i.done { background: var(--soft); }
.legend { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; margin: .5rem 0 0; padding: 0; list-style: none; }
.legend i { display: inline-block; width: .7rem; height: .7rem; border-radius: 50%; margin-right: .4rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: .75rem; margin: 1.5rem 0; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: .75rem; padding: .75rem 1rem; }
.tile b { display: block; font-size: 1.5rem; line-height: 1.25; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: .875rem; }
.tile.blocker b { color: var(--blocker); } .tile.warning b { color: var(--warning); }
.tile.note b { color: var(--note); }
.assumed { color: var(--soft); font-size: .9375rem; margin-top: -.5rem; } .assumed summary { cursor: pointer; }
.assumed ul { margin: .4rem 0 0; padding-left: 1.25rem; }
.waves { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 15rem), 1fr)); gap: .75rem; }
.waves .tile b { font-size: 1rem; margin-bottom: .35rem; }
.tools { display: none; position: sticky; top: 0; z-index: 2; background: var(--page); padding: .75rem 0;
  border-bottom: 1px solid var(--line); margin: 1.25rem 0 1rem; }
.js .tools { display: flex; flex-wrap: wrap; gap: .5rem; align-items: center; }
.tools input[type=search], .tools select { font: inherit; color: inherit; background: var(--card);
  border: 1px solid var(--line); border-radius: .5rem; padding: .4rem .7rem; min-height: 2.5rem; max-width: 100%; }
.tools input[type=search] { flex: 1 1 13rem; min-width: 0; }
.choice { display: inline-flex; border: 1px solid var(--line); border-radius: .5rem; overflow: hidden;
  background: var(--card); }
.choice label { cursor: pointer; }
.choice span { display: block; padding: .4rem .75rem; min-height: 2.5rem; line-height: 1.6rem; }
.choice input { position: absolute; opacity: 0; }
.choice input:checked + span { background: var(--ink); color: var(--card); }
.choice.severity input:checked + span.blocker { background: var(--blocker-soft); color: var(--blocker); }
.choice.severity input:checked + span.warning { background: var(--warning-soft); color: var(--warning); }
.choice.severity input:checked + span.note { background: var(--note-soft); color: var(--note); }
.choice.severity span { color: var(--soft); font-weight: 600; }
:focus-visible, .choice input:focus-visible + span { outline: 3px solid var(--link); outline-offset: 1px; }
.shown { flex-basis: 100%; margin: 0; font-size: .875rem; color: var(--soft); }
.group { background: var(--card); border: 1px solid var(--line); border-radius: .75rem; margin: 0 0 .75rem; }
.group > summary { list-style: none; cursor: pointer; padding: .8rem 1rem; display: grid; gap: .1rem .75rem;
  grid-template-columns: auto minmax(0, 1fr) auto; align-items: center; }
.group > summary::-webkit-details-marker { display: none; }
.group > summary strong { font-size: 1.05rem; line-height: 1.3; }
.group > summary .soft { grid-column: 2; font-size: .875rem; }
.group > summary .count { grid-row: 1 / span 2; grid-column: 3; white-space: nowrap; color: var(--soft);
  font-variant-numeric: tabular-nums; }
.group > summary .count::after { content: "▾"; margin-left: .6rem; }
.group[open] > summary .count::after { content: "▴"; }
.badge { display: inline-block; padding: .05rem .6rem; border-radius: 1rem; font-size: .8125rem; font-weight: 650;
  line-height: 1.6; white-space: nowrap; }
.badge.blocker, .badge.blocked { background: var(--blocker-soft); color: var(--blocker); }
.badge.warning { background: var(--warning-soft); color: var(--warning); }
.badge.note, .badge.done { background: var(--note-soft); color: var(--note); }
.badge.ready { background: var(--ready-soft); color: var(--ready); }
.body { padding: 0 1rem 1rem; }
.body > .finding:first-child { margin-top: .25rem; }
.finding { border-left: 3px solid var(--line); padding: .1rem 0 .1rem .9rem; margin: 1rem 0 0; }
.finding.blocker { border-color: var(--blocker); } .finding.warning { border-color: var(--warning); }
.finding.note { border-color: var(--note); }
.finding p { margin: .25rem 0; max-width: 48rem; }
.next::before { content: "Next: "; font-weight: 650; }
.accepted { background: var(--sunk); border-radius: .5rem; padding: .35rem .7rem; display: inline-block; }
code { font: .875em/1.4 ui-monospace, "SFMono-Regular", Menlo, Consolas, monospace; }
.chips { display: flex; flex-wrap: wrap; gap: .35rem; margin: .5rem 0 0; padding: 0; list-style: none; }
.chips a { display: block; padding: .1rem .6rem; border-radius: .4rem; background: var(--sunk); text-decoration: none;
  font-size: .875rem; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .2rem 1rem; margin: .25rem 0 .5rem;
  font-size: .9375rem; }
dt { color: var(--soft); } dd { margin: 0; }
.evidence summary { cursor: pointer; color: var(--soft); font-size: .875rem; }
pre { background: var(--sunk); border-radius: .5rem; padding: .6rem .8rem; overflow-x: auto; font-size: .8125rem;
  white-space: pre-wrap; margin: .4rem 0 0; }
.none { padding: 2rem 0; color: var(--soft); }
[hidden] { display: none !important; }
footer { max-width: 68rem; margin: 0 auto; padding: 1.5rem 1.25rem 3rem; color: var(--soft); font-size: .875rem; }
@media (max-width: 40rem) {
  main, header, footer { padding-left: 1rem; padding-right: 1rem; }
  .tiles { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .tools { position: static; } html { scroll-padding-top: 1rem; }
  .choice { flex: 1 1 100%; } .choice label { flex: 1 1 auto; text-align: center; }
  .choice span { padding: .4rem .25rem; font-size: .9375rem; white-space: nowrap; }
  .group > summary { grid-template-columns: minmax(0, 1fr) auto; }
  .group > summary > .badge { grid-column: 1; justify-self: start; }
  .group > summary strong, .group > summary .soft { grid-column: 1 / -1; }
  .group > summary .count { grid-row: 1; grid-column: 2; }
  dl { grid-template-columns: minmax(0, 1fr); } dt { margin-top: .35rem; font-size: .8125rem; }
}
@media print { .js .tools { display: none; } .group { break-inside: avoid; } body { background: none; } }
"""

SCRIPT = """
(() => {
  const one = (selector) => document.querySelector(selector);
  const all = (selector, from = document) => [...from.querySelectorAll(selector)];
  document.documentElement.classList.add("js");
  const search = one("#search"), wave = one("#wave"), shown = one("#shown"), none = one("#none");
  const findings = all(".finding").map((element) => ({
    element, severity: element.dataset.severity, weight: Number(element.dataset.weight),
    waves: JSON.parse(element.dataset.waves),
    text: (element.dataset.about + " " + element.textContent).toLowerCase() }));
  const byElement = new Map(findings.map((finding) => [finding.element, finding]));
  const groups = all(".group").map((element) => ({
    element, opened: element.open, wave: element.dataset.wave, text: (element.dataset.about || "").toLowerCase(),
    findings: all(".finding", element).map((each) => byElement.get(each)) }));
  const checked = (name) => all(`input[name=${name}]:checked`).map((input) => input.value);
  const weigh = (some) => some.reduce((sum, finding) => sum + finding.weight, 0);
  const filtered = (severities) => search.value || (wave && wave.value) || severities.length < 3;

  function apply() {
    const view = checked("view")[0], severities = checked("severity");
    const words = search.value.toLowerCase().split(/\\s+/).filter(Boolean);
    all(".view").forEach((section) => { section.hidden = section.id !== view; });
    for (const finding of findings) {
      finding.element.hidden = !severities.includes(finding.severity)
        || Boolean(wave && wave.value && !finding.waves.includes(wave.value))
        || !words.every((word) => finding.text.includes(word));
    }
    let count = 0, total = 0, visible = 0;
    for (const group of groups) {
      const left = weigh(group.findings.filter((finding) => !finding.element.hidden));
      const empty = group.findings.length === 0 && severities.length === 3
        && !(wave && wave.value && group.wave !== wave.value) && words.every((word) => group.text.includes(word));
      group.element.hidden = left === 0 && !empty;
      if (words.length && left) group.element.open = true;
      if (!words.length && group.element.dataset.searched) group.element.open = group.opened;
      group.element.dataset.searched = words.length ? "yes" : "";
      if (group.element.parentElement.id === view) {
        count += left; total += weigh(group.findings); visible += group.element.hidden ? 0 : 1;
      }
    }
    none.hidden = visible > 0;
    shown.textContent = filtered(severities) ? `${count} of ${total} findings shown` : `${total} findings`;
  }

  for (const kind of ["input", "change"]) one("form").addEventListener(kind, apply);
  one("form").addEventListener("submit", (event) => event.preventDefault());
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[href^='#server-']");
    if (!link) return;
    one("input[name=view][value=by-server]").checked = true;
    search.value = "";
    if (wave) wave.value = "";
    apply();
    const card = one(link.getAttribute("href"));
    card.open = true;
    card.hidden = false;
    card.scrollIntoView();
    card.querySelector("summary").focus();
    event.preventDefault();
  });
  apply();
})();
"""


def page(report: Mapping[str, Any]) -> str:
    """The page for *report*, a document of :func:`fleet_report.document`."""
    counts = report["summary"]
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(report["generated"]))
    anchors = {source["source"]: f"server-{number}" for number, source in enumerate(report["sources"])}
    waves = {source["source"]: source["wave"] for source in report["sources"]}
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    verdict = f"{counts['ready']} of {counts['sources']} servers can migrate"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; \
script-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<link rel="icon" href="data:,">
<title>{text(verdict)}</title>
<style>{STYLE}</style>
</head>
<body>
<header>
<h1>Preflight</h1>
<p class="verdict">{text(verdict)}</p>
{lengths(counts)}
{legend(counts)}
<div class="tiles">{tiles(report)}</div>
{assumptions(report.get("estimate") or {})}
{wave_tiles(report["waves"])}
</header>
<main>
{tools(report)}
<section class="view" id="by-code">
<h2>By finding</h2>
{"".join(code_group(code, anchors, waves) for code in report["codes"])}
</section>
<section class="view" id="by-server">
<h2>By server</h2>
{"".join(server_group(source, anchors[source["source"]]) for source in report["sources"])}
</section>
<p class="none" id="none" hidden>Nothing matches. Change the filter above.</p>
</main>
<footer>Made {when} by <code>fleetlift.cvm.preflight</code>, which changes nothing on servers and targets. A blocker
stops the server that it is about; the others can go on. What each code means, and how one is accepted:
<code>docs/errors.md</code>.</footer>
<script>{SCRIPT}</script>
</body>
</html>
"""


def text(value: object) -> str:
    """*value* as text of the page or of an attribute in quotes."""
    return html.escape(str(value), quote=True)


def lengths(counts: Mapping[str, int]) -> str:
    """How many servers are in which state, as lengths."""
    parts = "".join(f'<i class="{state}" style="flex:{counts[state]}"></i>' for state in STATES if counts.get(state))
    return f'<div class="bar" aria-hidden="true">{parts}</div>'


def legend(counts: Mapping[str, int]) -> str:
    """The same in words."""
    items = "".join(
        f'<li><i class="{state}"></i>{counts[state]} {name.lower()}</li>'
        for state, name in STATES.items()
        if counts[state]
    )
    return f'<ul class="legend">{items}</ul>'


def tiles(report: Mapping[str, Any]) -> str:
    """The figures of the whole fleet."""
    counts = report["summary"]
    found = [
        *((severity, str(counts[f"{severity}s"]), f"{NAMES[severity].lower()}s") for severity in SEVERITIES),
        ("", str(counts["accepted"]), "accepted"),
    ]
    # What an estimate sends says it as well.
    if counts["used_bytes"] is not None and not report.get("estimate"):
        found.append(("", size(counts["used_bytes"]), "in use on disks"))
    found += [("", value, name) for name, value in figures(report.get("estimate") or {})]
    return "".join(
        f'<div class="tile {kind}"><b>{text(value)}</b><span>{text(name)}</span></div>' for kind, value, name in found
    )


def assumptions(estimate: Mapping[str, Any]) -> str:
    """What the figures of the estimate take for granted."""
    lines = "".join(f"<li>{text(line)}</li>" for line in estimate.get("assumptions") or ())
    if not lines:
        return ""
    return f'<details class="assumed"><summary>What the estimate assumes</summary><ul>{lines}</ul></details>'


def wave_tiles(waves: Sequence[Mapping[str, Any]]) -> str:
    """The waves, in their order."""
    if not waves:
        return ""
    cards = "".join(
        f'<div class="tile"><b>{text(wave["wave"] or "no wave")}</b>{lengths(wave)}'
        f"<span>{wave['ready']} of {len(wave['sources'])} can migrate</span></div>"
        for wave in waves
    )
    return f'<h2>Waves</h2><div class="waves">{cards}</div>'


def figures(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Named figures with the unit that the name ends in: ``*_bytes``, ``*_seconds``, ``*_per_second``."""
    found = []
    for name, value in values.items():
        if value is None or isinstance(value, (Mapping, list, tuple)):
            continue
        label = name
        shown = str(value)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            if name.endswith("_per_second"):
                label, shown = name[: -len("_per_second")], f"{size(value)}/s"
            elif name.startswith("bytes_"):
                label, shown = name[len("bytes_") :], size(value)
            elif name.endswith(("_bytes", "bytes")):
                label, shown = name[: -len("bytes")].rstrip("_") or "data", size(value)
            elif name.endswith(("_seconds", "seconds")):
                label, shown = name[: -len("seconds")].rstrip("_") or "time", duration(value)
        found.append((LABELS.get(name) or label.replace("_", " "), shown))
    return found


def tools(report: Mapping[str, Any]) -> str:
    """What filters the findings. Hidden without scripts."""
    counts = report["summary"]
    severities = "".join(
        f'<label><input type="checkbox" name="severity" value="{severity}" checked>'
        f'<span class="{severity}">{NAMES[severity]}s {counts[f"{severity}s"]}</span></label>'
        for severity in SEVERITIES
    )
    waves = "".join(
        f'<option value="{text(wave["wave"])}">{text(wave["wave"] or "no wave")}</option>' for wave in report["waves"]
    )
    choose = f'<select id="wave" aria-label="Wave"><option value="">All waves</option>{waves}</select>' if waves else ""
    return f"""<form class="tools">
<input type="search" id="search" placeholder="Search servers, codes, words" aria-label="Search" autocomplete="off">
{choose}
<span class="choice severity" role="group" aria-label="Severity">{severities}</span>
<span class="choice" role="group" aria-label="View">
<label><input type="radio" name="view" value="by-code" checked><span>By finding</span></label>
<label><input type="radio" name="view" value="by-server"><span>By server</span></label>
</span>
<p class="shown" id="shown" role="status"></p>
</form>"""


def badge(kind: str, name: str) -> str:
    return f'<span class="badge {kind}">{name}</span>'


def code_group(code: Mapping[str, Any], anchors: Mapping[str, str], waves: Mapping[str, str]) -> str:
    """One code with all that was found under it; what is the same for several servers stands once."""
    severity = code["severity"]
    servers = len(code["sources"])
    about = f"{code['code']} {code['title']}"
    body = "".join(
        finding(
            each,
            about=about,
            waves=[waves[name] for name in each["sources"]],
            below=f'<ul class="chips">{"".join(chip(name, anchors[name]) for name in each["sources"])}</ul>',
        )
        for each in code["findings"]
    )
    return f"""<details class="group"{" open" if severity == "blocker" else ""}>
<summary>{badge(severity, NAMES[severity])}<strong>{text(code["title"])}</strong>
<span class="soft"><code>{text(code["code"])}</code></span>
<span class="count">{servers} server{"" if servers == 1 else "s"}</span></summary>
<div class="body">{body}</div>
</details>
"""


def chip(name: str, anchor: str) -> str:
    return f'<li><a href="#{anchor}">{text(name)}</a></li>'


def finding(record: Mapping[str, Any], *, about: str, waves: Iterable[str], below: str, head: str = "") -> str:
    """Cause, next step and, where somebody accepted it, why."""
    accepted = record.get("accepted")
    why = (
        f'<p class="accepted">Accepted, {NAMES[accepted["severity"]].lower()} otherwise: {text(accepted["reason"])}</p>'
        if accepted
        else ""
    )
    severity = record["severity"]
    every = list(waves)
    return (
        f'<div class="finding {severity}" data-severity="{severity}" data-about="{text(about)}"'
        f' data-weight="{len(every)}" data-waves="{text(json.dumps(sorted(set(every))))}">'
        f'{head}<p>{text(record["cause"])}</p><p class="next">{text(record["action"])}</p>{why}{below}</div>'
    )


def server_group(source: Mapping[str, Any], anchor: str) -> str:
    """One server: what it is, and all that was found about it."""
    name = source["source"]
    found = source["findings"]
    about = f"{name} {source['target']} {source['system'] or ''}"
    counts = ", ".join(
        f"{number} {severity}{'' if number == 1 else 's'}"
        for severity in SEVERITIES
        for number in [sum(each["severity"] == severity for each in found)]
        if number
    )
    body = "".join(
        finding(
            each,
            about=f"{about} {each['code']}",
            waves=[source["wave"]],
            head=f"<p>{badge(each['severity'], NAMES[each['severity']])} <code>{text(each['code'])}</code></p>",
            below=evidence(each["evidence"]),
        )
        for each in found
    )
    wave = f" · {text(source['wave'])}" if source["wave"] else ""
    return f"""<details class="group" id="{anchor}" data-about="{text(about)}" data-wave="{text(source["wave"])}">
<summary>{badge(source["state"], STATES[source["state"]])}<strong>{text(name)}</strong>
<span class="soft">{text(source["target"] or "no target")}{wave}</span>
<span class="count">{text(counts or "nothing found")}</span></summary>
<div class="body">{facts(source)}{body}</div>
</details>
"""


def facts(source: Mapping[str, Any]) -> str:
    """What the server is made of, as far as it is known."""
    rate = source["path_bytes_per_second"]
    machine = " · ".join(str(source[key]) for key in ("architecture", "firmware") if source[key])
    rows = [
        ("System", source["system"]),
        ("Kernel", " · ".join(each for each in (source["kernel"], machine) if each)),
        ("Memory", None if source["memory_bytes"] is None else size(source["memory_bytes"])),
        *(
            ("Disk", f"{pair['device']} ({size(pair['size'])}) → {pair['target_serial']} ({size(pair['target_size'])})")
            for pair in source["disks"]
        ),
        ("In use", None if source["used_bytes"] is None else size(source["used_bytes"])),
        (
            "Written",
            None if source["write_bytes_per_second"] is None else f"{size(source['write_bytes_per_second'])}/s",
        ),
        (
            "Path",
            f"{size(rate)}/s" if rate else f"not measured: {source['path_not_measured']}" if source["kernel"] else None,
        ),
        *((name.capitalize(), value) for name, value in figures(source["estimate"])),
    ]
    items = "".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in rows if value)
    return f"<dl>{items}</dl>" if items else ""


def evidence(record: Mapping[str, Any]) -> str:
    """What was observed, folded away."""
    if not record:
        return ""
    shown = json.dumps(record, indent=1, sort_keys=True, ensure_ascii=False, default=str)
    return f'<details class="evidence"><summary>Evidence</summary><pre>{text(shown)}</pre></details>'
