"""The report of `gpu.py` as Markdown: what was asked for, what was measured, and what had been estimated."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from .cases import FIRST, ROWS, Row
from .jobs import FAILED, NOT_REACHED

Report = dict[str, Any]
DASH = "—"
# what a group of checks, or a row, is if it ended and nothing is wrong with it
PASSED = "passed"
NOTE = """\
Measured: the public call with `backend="triton"`, float32 inputs, certainty on, median, L2 cold. Peak memory: above the
inputs. Layer forwards: how many forward passes of the layer the call takes. PyTorch engine: its time over the kernels'
on this card, both at the sizes below. Estimates are no measurements: see `gpu_model.py`."""


def slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    head = list(head)
    cells = (" | ".join(str(cell).replace("|", "/").replace("\n", " ") for cell in row) for row in rows)
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *(f"| {row} |" for row in cells), ""]


def number(x: Any, unit: str = "") -> str:
    return f"{x:.3g}{unit}" if isinstance(x, int | float) else DASH


def card_of(report: Report) -> str:
    """The card of the estimates that is nearest to the one measured."""
    return "H200" if "H200" in report["environment"].get("card", "") else "H100"


def estimate_of(report: Report, key: str) -> Report:
    if report["toy"]:
        return {}
    return report["estimates"].get("cards", {}).get(card_of(report), {}).get(key, {})


def verdict(row: Row, found: Report, toy: bool) -> str:
    if toy or not row.goals:
        return DASH
    words = []
    for goal in row.goals:
        value = found.get(goal.figure)
        words.append("not measured" if value is None else "met" if goal.met(value) else "missed")
    return ", ".join(words)


def answer_check(found: Report) -> str:
    checked = found.get("checked")
    if not checked:
        return DASH
    if "skipped" in checked:
        return "not checked"
    if "error" in checked:
        return f"error {checked['error']:.1e}"
    return f"{checked['wrong']} wrong"


def markdown(report: Report) -> str:
    environment = report["environment"]
    lines = [f"# {environment.get('card', 'unknown card')}", ""]
    if report["toy"]:
        lines += ["**Toy sizes: this shows that everything runs. No time here says anything.**", ""]
    versions = ("torch", "triton", "cuda", "python", "ess_kernels")
    facts = {
        "date": report["date"],
        "commit": report["commit"],
        "driver": report["driver"],
        **{name: environment[name] for name in versions if name in environment},
        "command": report["command"],
    }
    if "seconds" in report:
        facts["whole run"] = f"{report['seconds']:.0f} s"
    lines += [f"- {name}: {value}" for name, value in facts.items()] + [""]
    if report["problems"]:
        lines += ["## Problems", "", *(f"- {problem}" for problem in report["problems"]), ""]
    lines += outcome(report)
    lines += compiling(report)
    lines += rows_table(report)
    lines += stages_table(report)
    lines += ceilings_table(report)
    lines += checks_table(report)
    return "\n".join(lines)


def outcome(report: Report) -> list[str]:
    """How many groups and rows passed, failed and were not reached, and which are the latter two."""
    by_state: dict[str, list[str]] = {PASSED: [], FAILED: [], NOT_REACHED: []}
    for key, group in report["groups"].items():
        by_state[group["state"]].append(f"- {group['state']}: {key}: {group['why']}")
    counts = ", ".join(f"{len(found)} {state}" for state, found in by_state.items())
    lines = ["## Groups of checks, and rows", "", f"{counts}.", ""]
    unhappy = [*by_state[FAILED], *by_state[NOT_REACHED]]
    return lines + [*unhappy, ""] * bool(unhappy)


def compiling(report: Report) -> list[str]:
    """What was compiled before anything else, and what was compiled in spite of that when it was needed."""
    found, late = report["compiling"], report["late"]
    if not found:
        return []
    slowest = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in found["slowest"])
    lines = [
        f"{found['kernels']} kernels in {found['seconds']:.0f} s ({found['compile_seconds']:.0f} s of all processes), "
        f"{len(found['failures'])} failed, {len(found['left'])} not compiled in time. Slowest: {slowest or DASH}.",
        "",
        f"When they were needed: {len(late)} more, in {sum(seconds for _, seconds in late):.0f} s.",
        "",
        *(f"- failed: {name}: {why}" for name, why in found["failures"]),
        *(f"- not in time: {name}" for name in found["left"]),
        *(f"- when it was needed: {name}, {seconds:.1f} s" for name, seconds in late),
        *(f"- rehearsal cut short: {key}: {why}" for key, why in found["cut_short"].items()),
    ]
    return ["## Compiling", "", *lines, ""]


def rows_table(report: Report) -> list[str]:
    rows, failures = [], []
    for row in ROWS:
        found = report["rows"].get(row.key)
        if found is None:
            continue
        estimate = estimate_of(report, row.key).get("ms")
        measured = number(found.get("ms"), " ms")
        if found.get("warm"):
            measured += f" ({found['runs']} runs, spread {found['spread']:.1%})"
        engine = found.get("torch_engine", {})
        rows.append(
            [
                row.title,
                ", ".join(map(str, row.goals)) or DASH,
                measured,
                number(estimate, " ms"),
                verdict(row, found, report["toy"]),
                number(found.get("large_budget_ms"), " ms"),
                number(found.get("peak_gb"), " GB"),
                number(found.get("layer_ratio"), "x"),
                f"{engine['ratio']:.3g}x" if engine else DASH,
                answer_check(found),
            ]
        )
        failures += [f"- {row.key}: {what}: {why}" for what, why in found.get("failures", {}).items()]
    head = ["work", "goal", "measured", f"estimate ({card_of(report)})", "goal met", "8 GiB workspace", "peak memory"]
    lines = ["## Goals", "", *table([*head, "layer forwards", "PyTorch engine", "answers"], rows)]
    lines += [NOTE, ""]
    lines += details(report)
    if failures:
        lines += ["What could not be had:", "", *failures, ""]
    return lines


def details(report: Report) -> list[str]:
    lines = []
    for row in ROWS:
        found = report["rows"].get(row.key, {})
        words = []
        if "redone" in found:
            words.append(f"{found['redone']:.2%} of the counts redone, {found['unresolved']} unresolved")
        if "layer_ms" in found:
            words.append(f"{found['layer']} {found['layer_ms']:.3g} ms")
        engine = found.get("torch_engine")
        if engine:
            sizes = ", ".join(f"{name} {value}" for name, value in engine["sizes"].items())
            words.append(f"PyTorch engine {engine['ms']:.4g} ms, kernels {engine['kernels_ms']:.4g} ms at {sizes}")
        if "per_product_time" in found:
            words.append(f"{found['per_product_time']:.3g} times its products at the float32 rate")
            words.append(f"these take {found['products_ms']:.3g} ms, {found.get('certified', 0):.0%} certified")
        if "us_per_matrix" in found:
            words.append(f"{found['us_per_matrix']:.3g} us a matrix")
        for name, peer in found.get("peers", {}).items():
            if "us_per_matrix" in peer:
                words.append(f"{name} {peer['us_per_matrix']:.3g} us a matrix ({peer['matrices']} of them)")
        words += [f"{name}: {why}" for name, why in found.get("peers", {}).get("failures", {}).items()]
        if words:
            lines.append(f"- {row.title}: {'; '.join(words)}")
    return [*lines, ""] if lines else []


def stages_table(report: Report) -> list[str]:
    stages = report["rows"].get(FIRST, {}).get("stages")
    if not stages:
        return []
    rates = {found["name"]: found["rate"] for found in report["ceilings"]}
    double, copy = rates.get("float64 product 4096"), rates.get("copy")
    whole = stages["whole call"]["ms"]
    counted = estimate_of(report, FIRST).get("stages", {})
    rows = []
    for name, found in stages.items():
        model = counted.get(name, {})
        ms = found["ms"]
        teraflops = model["flops"] / ms / 1e9 if "flops" in model and ms else None
        terabytes = model["bytes"] / ms / 1e9 if "bytes" in model and ms else None
        rows.append(
            [
                name,
                str(found["calls"]),
                number(ms, " ms"),
                f"{ms / whole:.0%}",
                number(model.get("ms"), " ms"),
                number(teraflops) + (f" ({teraflops / double:.0%})" if teraflops and double else ""),
                number(terabytes) + (f" ({terabytes / copy:.0%})" if terabytes and copy else ""),
            ]
        )
    rest = whole - sum(found["ms"] for name, found in stages.items() if name != "whole call")
    rows.append(["everything else", "", number(rest, " ms"), f"{rest / whole:.0%}", DASH, DASH, DASH])
    title = next(row.title for row in ROWS if row.key == FIRST)
    head = ["stage", "calls", "measured", "share", "estimate", "float64 TFLOP/s (of ceiling)", "TB/s (of ceiling)"]
    note = "Operations and bytes are those that the cost model counts for one elimination of every position."
    return [f"## {title}, taken apart", "", *table(head, rows), note, ""]


def ceilings_table(report: Report) -> list[str]:
    if not report["ceilings"]:
        return []
    rows = [[found["name"], f"{found['rate']:.4g} {found['unit']}"] for found in report["ceilings"]]
    instruction = report["rows"].get("ceilings", {}).get("matrix_instruction")
    if instruction:
        rows.append(["float64 matrix instruction of `tl.dot`", instruction])
    return ["## Ceilings, measured", "", *table(["what", "rate"], rows)]


def checks_table(report: Report) -> list[str]:
    if not report["checks"]:
        return ["## Correctness", "", "No check was run.", ""]
    bad = [check for check in report["checks"] if not check["ok"]]
    groups: dict[str, list[Report]] = {}
    for check in report["checks"]:
        groups.setdefault(check["group"], []).append(check)
    rows = []
    for group, checks in groups.items():
        worst = max(checks, key=lambda check: (not check["ok"], share(check)))
        off = worst.get("problem") or f"{worst['error']:.2g}, allowed {worst['allowed']:.2g}"
        rows.append([group, str(len(checks)), str(sum(not check["ok"] for check in checks)), f"{worst['name']}: {off}"])
    lines = ["## Correctness", "", f"{len(report['checks'])} checks, {len(bad)} failed.", ""]
    lines += table(["group", "checks", "failed", "nearest to its limit"], rows)
    if bad:
        lines += ["Failed:", ""]
        lines += [f"- {c['group']}: {c['name']}: {c.get('problem', c.get('error'))}" for c in bad] + [""]
    return lines


def share(check: Report) -> float:
    """Of what is allowed, how much was needed."""
    error, allowed = check.get("error"), check.get("allowed")
    if error is None or not allowed:
        return 0.0
    return error / allowed
