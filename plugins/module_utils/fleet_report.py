# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the preflight found out about a fleet, as one document. Pure: what is known of each source in, records out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree

from .estimate import fleet
from .finding_codes import CODES
from .findings import SEVERITIES, Finding, by_severity, finding_from
from .progress import duration, size

SCHEMA = 1
# XML 1.0, section 2.2: what no document may contain, not even escaped.
NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class Source:
    """One server of the fleet. ``state`` is ``ready``, ``blocked``, or ``done`` for one that needs no preflight."""

    name: str
    target: str
    wave: str
    state: str
    findings: tuple[Finding, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)
    pairs: tuple[Mapping[str, Any], ...] = ()
    estimate: Mapping[str, Any] = field(default_factory=dict)

    def count(self, severity: str) -> int:
        return sum(finding.severity == severity for finding in self.findings)

    @property
    def used_bytes(self) -> int | None:
        """What is in use on the mapped disks; their whole size where that is not known. None without a mapping."""
        disks = {disk.get("path"): disk.get("used_bytes") for disk in self.facts.get("disks") or ()}
        found = [disks.get(pair["device"]) or pair["size"] for pair in self.pairs]
        return sum(found) if found else None


def source_from(name: str, known: Mapping[str, Any]) -> Source:
    """The source *name*, from the variables that the roles leave with it."""
    assessment = known.get("fleetlift_assessment") or {}
    looked = known.get("fleetlift_source") or {}
    findings = [finding_from(record) for record in assessment.get("findings") or ()]
    done = known.get("fleetlift_handed_over") or known.get("fleetlift_reached") == "finalize"
    if not done and "findings" not in assessment:
        findings.append(_not_assessed(name, known))
    return Source(
        name=name,
        target=str(known.get("fleetlift_target") or ""),
        wave=wave_name(known.get("fleetlift_wave")),
        state="done" if done else "blocked" if any(finding.blocks for finding in findings) else "ready",
        findings=tuple(by_severity(findings)),
        facts=looked.get("facts") or {},
        pairs=tuple(assessment.get("pairs") or ()),
        estimate=assessment.get("estimate") or {},
    )


def wave_name(wave: object) -> str:
    """What people call a wave; nothing where a source names none."""
    return f"wave {wave}" if isinstance(wave, int) else str(wave or "")


def _not_assessed(name: str, known: Mapping[str, Any]) -> Finding:
    """A source whose preflight ended before there was a result: the error that ended it, if it is known."""
    error = known.get("fleetlift_failure_finding") or {}
    if error.get("code") and error.get("severity") in SEVERITIES:
        return finding_from(error)
    return Finding(
        "NOT_ASSESSED",
        "blocker",
        name,
        f"The preflight of {name} ended before it had a result: {known.get('fleetlift_failure') or 'its task failed'}",
        "Mend what the run's output says about it, and run again.",
    )


def document(sources: Sequence[Source], generated: float, estimate: Mapping[str, Any]) -> dict[str, Any]:
    """The report as JSON; *generated* is in seconds since the epoch, *estimate* about the fleet as a whole."""
    return {
        "schema": SCHEMA,
        "generated": round(generated, 3),
        "summary": summary(sources),
        "estimate": dict(estimate) or _expected(sources),
        "waves": waves(sources),
        "codes": codes(sources),
        "sources": [_record(source) for source in sources],
    }


def _expected(sources: Sequence[Source]) -> dict[str, Any]:
    """The estimates of all sources together, with what they assume."""
    known = [source.estimate for source in sources if source.estimate]
    if not known:
        return {}
    assumptions = dict.fromkeys(line for each in known for line in each.get("assumptions") or ())
    return {**fleet(known), "assumptions": list(assumptions)}


def summary(sources: Sequence[Source]) -> dict[str, Any]:
    """Counts of servers and findings; bytes in use of all of them together."""
    used = [source.used_bytes for source in sources if source.used_bytes is not None]
    return {
        "sources": len(sources),
        **{state: sum(source.state == state for source in sources) for state in ("ready", "blocked", "done")},
        **{f"{severity}s": sum(source.count(severity) for source in sources) for severity in SEVERITIES},
        "accepted": sum(bool(finding.accepted) for source in sources for finding in source.findings),
        "used_bytes": sum(used) if used else None,
    }


def waves(sources: Iterable[Source]) -> list[dict[str, Any]]:
    """The waves in natural order, with the states of their servers. None when no source names one."""
    grouped: dict[str, list[Source]] = {}
    for source in sources:
        grouped.setdefault(source.wave, []).append(source)
    if set(grouped) == {""}:
        return []
    return [
        {"wave": name, "sources": [each.name for each in grouped[name]], **_states(grouped[name])}
        for name in sorted(grouped, key=natural)
    ]


def _states(sources: Sequence[Source]) -> dict[str, int]:
    return {state: sum(source.state == state for source in sources) for state in ("ready", "blocked", "done")}


def codes(sources: Iterable[Source]) -> list[dict[str, Any]]:
    """The codes that were found, worst and most frequent first, with what the same words are said about.

    One entry of ``findings`` is one text with all the ``sources`` that it is said of, and its evidence by source.
    """
    grouped: dict[str, dict[tuple[str, ...], dict[str, Any]]] = {}
    for source in sources:
        for finding in source.findings:
            key = (finding.severity, finding.cause, finding.action, str(finding.accepted.get("reason", "")))
            entry = grouped.setdefault(finding.code, {}).setdefault(
                key, {**finding.record(), "sources": [], "evidence": {}}
            )
            if source.name not in entry["sources"]:
                entry["sources"].append(source.name)
            entry["evidence"].setdefault(source.name, dict(finding.evidence))
    found = [
        {
            "code": code,
            "title": title(code),
            "severity": min((entry["severity"] for entry in entries.values()), key=SEVERITIES.index),
            "sources": list(dict.fromkeys(name for entry in entries.values() for name in entry["sources"])),
            "findings": sorted(entries.values(), key=lambda entry: SEVERITIES.index(entry["severity"])),
        }
        for code, entries in grouped.items()
    ]
    return sorted(found, key=lambda code: (SEVERITIES.index(code["severity"]), -len(code["sources"]), code["code"]))


def title(code: str) -> str:
    """What *code* is called; codes that come from outside of the preflight are called by their own words."""
    return CODES[code].title if code in CODES else code.replace("_", " ").capitalize()


def natural(text: str) -> tuple[tuple[int, int, str], ...]:
    """A key by which 2 comes before 10, and words after numbers."""
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.findall(r"\d+|\D+", text))


def _record(source: Source) -> dict[str, Any]:
    facts = source.facts
    return {
        "source": source.name,
        "target": source.target,
        "wave": source.wave,
        "state": source.state,
        "system": (facts.get("distribution") or {}).get("pretty"),
        "kernel": facts.get("kernel"),
        "architecture": facts.get("architecture"),
        "firmware": facts.get("firmware"),
        "memory_bytes": (facts.get("memory") or {}).get("total"),
        "used_bytes": source.used_bytes,
        "write_bytes_per_second": _total(facts, "write_bytes_per_second"),
        "path_bytes_per_second": (facts.get("probe") or {}).get("bytes_per_second"),
        "path_not_measured": (facts.get("probe") or {}).get("reason"),
        "disks": list(source.pairs),
        "estimate": dict(source.estimate),
        "findings": [finding.record() for finding in source.findings],
    }


def _total(facts: Mapping[str, Any], name: str) -> float | None:
    found = [disk[name] for disk in facts.get("disks") or () if disk.get(name) is not None]
    return sum(found) if found else None


def lines(report: Mapping[str, Any]) -> list[str]:
    """The report for a terminal: one line per source, and below each that is blocked why and what next."""
    rows = [("source", "target", "wave", "blockers", "warnings", "notes", "in use")]
    for source in report["sources"]:
        counts = [sum(each["severity"] == severity for each in source["findings"]) for severity in SEVERITIES]
        rows.append(
            (
                source["source"],
                source["target"] or "-",
                source["wave"] or "-",
                *(str(count or "-") for count in counts),
                "-" if source["used_bytes"] is None else size(source["used_bytes"]),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    table = ["  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip() for row in rows]
    table.insert(1, "  ".join("─" * width for width in widths))
    blocked = [
        f"{source['source']}: {each['code']}: {each['cause']} Next: {each['action']}"
        for source in report["sources"]
        for each in source["findings"]
        if each["severity"] == "blocker"
    ]
    counts = report["summary"]
    total = f"{counts['ready']} of {counts['sources']} can migrate, {counts['blocked']} cannot."
    return [*table, *([""] if blocked else []), *blocked, "", total, *_expectation(report.get("estimate") or {})]


def _expectation(expected: Mapping[str, Any]) -> list[str]:
    """What the migration of the fleet will take, and what that assumes."""
    if not expected:
        return []
    figures = [
        f"{size(expected['bytes_to_send'])} to send" if expected.get("bytes_to_send") is not None else "",
        f"{size(expected['traffic_bytes'])} over the wire" if expected.get("traffic_bytes") is not None else "",
        f"{duration(expected['seconds'])} until all are in sync" if expected.get("seconds") is not None else "",
        f"up to {duration(expected['downtime_seconds'])} of downtime each" if expected.get("downtime_seconds") else "",
    ]
    return [
        f"Expected: {', '.join(filter(None, figures))}.",
        *(f"  assumed: {line}" for line in expected.get("assumptions") or ()),
    ]


def junit(report: Mapping[str, Any]) -> bytes:
    """The report as JUnit XML: a suite per source, a case per code, a failure for each blocker.

    What is no blocker passes, with its text in the case's output. Form: the schema of the Jenkins xUnit plugin.
    """
    root = ElementTree.Element("testsuites", name="preflight")
    for source in report["sources"]:
        findings = source["findings"]
        failed = [each for each in findings if each["severity"] == "blocker"]
        suite = ElementTree.SubElement(root, "testsuite", name=_xml(source["source"]))
        cases = [_case(source, each) for each in findings] or [_passed(source)]
        suite.extend(cases)
        suite.set("tests", str(len(cases)))
        suite.set("failures", str(len(failed)))
        suite.set("errors", "0")
        suite.set("skipped", "0")
    ElementTree.indent(root)
    return bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))


def _case(source: Mapping[str, Any], finding: Mapping[str, Any]) -> ElementTree.Element:
    case = ElementTree.Element(
        "testcase",
        classname=_xml(f"preflight.{source['source']}"),
        name=_xml(f"{finding['code']} {finding['subject']}"),
        time="0",
    )
    accepted = finding.get("accepted")
    text = f"{finding['severity']}: {finding['cause']}\nNext: {finding['action']}"
    if accepted:
        text += f"\nAccepted ({accepted['severity']} otherwise): {accepted['reason']}"
    if finding["severity"] == "blocker":
        failure = ElementTree.SubElement(case, "failure", type=_xml(finding["code"]), message=_xml(finding["cause"]))
        failure.text = _xml(text)
    else:
        ElementTree.SubElement(case, "system-out").text = _xml(text)
    return case


def _passed(source: Mapping[str, Any]) -> ElementTree.Element:
    return ElementTree.Element(
        "testcase", classname=_xml(f"preflight.{source['source']}"), name="nothing found", time="0"
    )


def _xml(text: str) -> str:
    return NOT_XML.sub("\ufffd", text)
