"""The report as JSON."""

from __future__ import annotations

import json
from typing import Any

from stormproof.replay.certification import Certification, Result
from stormproof.replay.reports.fixes import fixes_for
from stormproof.replay.reports.sentences import describe_fault, headline

VERSION = 1
"""Version of the format."""


def json_report(certification: Certification) -> str:
    """Returns the results as a JSON document."""
    document = {
        "version": VERSION,
        "exact": certification.is_exact,
        "command": certification.command,
        "framework": certification.framework,
        "packages": certification.packages,
        "steps": certification.steps,
        "ranks": certification.ranks,
        "compared_every": certification.every,
        "run_seconds": round(certification.run_seconds, 3),
        "certification_seconds": round(certification.seconds, 3),
        "faults": [_describe(result, certification.framework) for result in certification.results],
        "skipped": [
            {"kind": skipped.fault.kind.value, "step": skipped.fault.step, "reason": skipped.reason}
            for skipped in certification.skipped
        ],
        "ignored": certification.ignored,
    }
    return json.dumps(document, indent=2) + "\n"


def _describe(result: Result, framework: str) -> dict[str, Any]:
    verdict = result.verdict
    components = (verdict.component, *verdict.others) if verdict.component else ()
    return {
        "kind": result.fault.kind.value,
        "fault": describe_fault(result.fault, result.step),
        "step": result.step,
        "verdict": verdict.kind.value,
        "safe": result.is_safe,
        "sentence": headline(verdict),
        "resumed_step": verdict.resumed_step,
        "compared_steps": verdict.compared_steps,
        "lost_steps": verdict.lost_steps,
        "loaded": verdict.loaded,
        "first_differing_step": verdict.step,
        "rank": verdict.rank,
        "component": verdict.component or None,
        "also_not_restored": verdict.others,
        "restored": verdict.restored,
        "differs_without_effect": verdict.without_effect,
        "fixes": [{"component": name, "fix": fix} for name, fix in fixes_for(components, framework)],
        "exit_code": verdict.exit_code,
        "message": verdict.message,
        "seconds": round(result.seconds, 3),
    }
