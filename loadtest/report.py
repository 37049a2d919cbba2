"""results.md: what one run of all workloads found, for people; it ends in the specification's figures, each with its verdict.

Rule: everything in it is in results.json too, from which another run may be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from loadtest.result import Report
from loadtest.specification import Finding, judge
from loadtest.tables import markdown, markdown_table


def write(report: Report, told: dict[str, str], file: Path) -> None:
    """`told`: of each workload, in words, what it does."""
    lines = ["# Load: what was measured", "", *_machine(report)]
    for result in report.results:
        lines += ["", f"## {result.workload}", "", told.get(result.workload, ""), "", *markdown(result)]
    lines += _gone_wrong(report)
    lines += ["", "## The specification's figures", "", *specification_table(judge(report.results)), ""]
    file.write_text("\n".join(lines))


def specification_table(findings: Sequence[Finding]) -> list[str]:
    rows = [(each.demand.section, each.demand.words, each.measured, str(each.verdict)) for each in findings]
    return markdown_table(("section", "figure", "measured", "verdict"), rows)


def _machine(report: Report) -> list[str]:
    words = "Figures hold for this machine in these minutes; shares of a ceiling (what it can do bare, measured just before) carry over."
    return [words, "", *markdown_table(("machine", ""), list(report.machine.items()))]


def _gone_wrong(report: Report) -> list[str]:
    lines = []
    for heading, named in (("Failed", report.failed), ("Left out", report.left_out)):
        if named:
            lines += ["", f"## {heading}", "", *(f"- {name}: {why}" for name, why in named.items())]
    return lines
