"""Outcomes as JUnit XML: a suite for each task, a test case for each feature."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree

from aether_emu.verify.cases.comparison import Case
from aether_emu.verify.cases.known import KNOWN
from aether_emu.verify.cases.suites import Outcome
from aether_emu.verify.cases.tlb import TlbTally

_SHOWN = 5


def as_xml(outcomes: Sequence[Outcome]) -> bytes:
    """The document, without times: the same cases give the same bytes."""
    root = ElementTree.Element("testsuites", name="aether verify")
    for outcome in outcomes:
        root.append(_suite(outcome))
    for name in ("tests", "failures", "skipped"):
        root.set(name, str(sum(int(suite.get(name, "0")) for suite in root)))
    ElementTree.indent(root)
    return bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"


def _suite(outcome: Outcome) -> ElementTree.Element:
    task, tally = outcome.task, outcome.tally
    name = f"{task.format}.{task.suite}"
    suite = ElementTree.Element("testsuite", name=name)
    cases: list[ElementTree.Element] = []
    for feature in dict.fromkeys(feature for feature, _access in tally.cells):
        case = ElementTree.Element("testcase", classname=name, name=feature)
        red = sum(count for (at, _access), count in tally.red.items() if at == feature)
        if red:
            shown = [one for one in tally.differences if one.feature == feature][:_SHOWN]
            failure = ElementTree.SubElement(case, "failure", message=f"{red} cases differ")
            failure.text = "\n".join(map(as_text, shown))
        cases.append(case)
    for known, count in tally.gone.items():
        case = ElementTree.Element("testcase", classname=name, name=f"known difference: {known}")
        if count:
            ElementTree.SubElement(case, "failure", message=f"gone in {count} cases").text = KNOWN[known]
        cases.append(case)
    if isinstance(tally, TlbTally):
        for edit, found in tally.findings.items():
            case = ElementTree.Element("testcase", classname=name, name=f"flush policy: {edit}")
            if found.missing:
                ElementTree.SubElement(
                    case, "failure", message=f"no flush after {found.missing} edits that owe one"
                )
            cases.append(case)
    if not cases:
        case = ElementTree.Element("testcase", classname=name, name=task.suite)
        ElementTree.SubElement(case, "skipped", message="; ".join(outcome.lines) or "no cases")
        cases.append(case)
    suite.extend(cases)
    suite.set("tests", str(len(cases)))
    suite.set("failures", str(sum(case.find("failure") is not None for case in cases)))
    suite.set("skipped", str(sum(case.find("skipped") is not None for case in cases)))
    said = [*outcome.lines, *(f"{known}: {count} cases" for known, count in tally.known.items())]
    ElementTree.SubElement(suite, "system-out").text = "\n".join(said)
    return suite


def as_text(case: Case) -> str:
    """One case on one line."""
    entries = " ".join(f"{entry:#x}" for entry in reversed(case.entries))
    controls = " ".join(f"{name}={value}" for name, value in case.controls.items())
    return (
        f"{case.feature}; {case.access} at {case.address:#x}; {controls}; entries from the root {entries}; "
        f"specification: {case.expected}; seen: {case.observed}"
    )
