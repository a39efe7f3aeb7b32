"""Every causal language model of transformers, tiny and random: which mixers are captured, and how well.

    python bench/capture.py [NAME ...] [--fresh] [--json FILE] [--markdown FILE]

Each architecture is built with a small configuration and random weights (no downloads), run with and without capture,
and every call of a mixer is verified: its operator's `T u`, with skip and gate, against what the mixer passed on, and
the closed form's `T` against the one that one-hot values give. Where an error exceeds 1e-6 the model runs in float64 as
well, which tells rounding from a wrong formula. `--fresh` also runs each architecture in a process of its own, and
compares. All of them take three minutes on one core, with `--fresh` half an hour.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from ess_kernels.analysis.completeness import SHORT, batch_axes, doubt, find_mixing, unseen
from ess_kernels.capture import MixerCall, Mixing, Refused, capturing, torch_functions, verify
from ess_kernels.capture.one_hot import read_off
from ess_kernels.capture.registry import OTHER_AXIS
from ess_kernels.testing import tiny_models

# what the project promises
GOALS = {"run": 165, "all captured": 150, "error below 1e-6": 0.95, "largest error": 1e-5, "one-hot": 1e-6}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="architectures, as transformers calls them; default: all")
    parser.add_argument("--fresh", action="store_true", help="also each in a process of its own")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    quiet()
    names = options.names or tiny_models.causal_lm_names()
    rows = []
    for name in names:
        row = measure(name)
        if options.fresh:
            row["fresh"] = same(row, in_fresh_process(name))
        rows.append(row)
        print(line(row), flush=True)
    report = summary(rows)
    print("\n" + "\n".join(f"{key}: {value}" for key, value in report.items()))
    if options.json:
        options.json.write_text(json.dumps({"summary": report, "architectures": rows}, indent=1) + "\n")
    if options.markdown:
        options.markdown.write_text(markdown(rows, report))
    return 0


def quiet() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)


def measure(name: str) -> dict[str, Any]:
    """What is found in one architecture."""
    row: dict[str, Any] = {"name": name, "ran": False}
    begin = time.perf_counter()
    try:
        model = tiny_models.tiny_model(name)
        inputs = tiny_models.tiny_inputs(name, model)
        with torch.no_grad(), torch_functions(model):
            plain = run(model, inputs)
    except Exception as error:
        return row | {"verdict": f"cannot be built here: {first_line(error)}"}
    shape = next(iter(inputs.values())).shape[:2]
    mixing, notes = find_mixing(model, {**inputs, "use_cache": False}, *shape)
    captured, calls, refused = watch(model, inputs, mixing)
    skipped = refused | unseen(mixing, [call["name"] for call in calls] + list(refused), None)
    missing = {key: reason for key, reason in skipped.items() if not reason.startswith((SHORT, OTHER_AXIS))}
    verified = [call for call in calls if "error" in call]
    complete = verified and not missing and not notes
    same_logits = bool(torch.equal(plain, captured))
    if any(call["error"] > GOALS["one-hot"] for call in verified):
        _, exact, _ = watch(model.double(), inputs, mixing)
        row["error in float64"] = max(call["error"] for call in exact if "error" in call)
    return row | {
        "ran": True,
        "same": same_logits,
        "calls": calls,
        "short": len(skipped) - len(missing),
        "missing": missing,
        "notes": notes,
        "verdict": "all captured" if complete else "; ".join(sorted({*missing.values(), *notes})),
        "seconds": round(time.perf_counter() - begin, 2),
    }


def watch(
    model: torch.nn.Module, inputs: dict[str, Any], mixing: Mixing
) -> tuple[torch.Tensor, list[Any], dict[str, str]]:
    """The model's output with capture on, every call examined, and what was refused."""
    shape = next(iter(inputs.values())).shape[:2]
    order = batch_axes(model, {**inputs, "use_cache": False}, *shape)
    calls: list[dict[str, Any]] = []

    def receive(call: MixerCall) -> None:
        calls.append(examine(call, mixing))

    with torch.no_grad(), capturing(model, receive, shape=shape, batch_first=order) as seen:
        output = run(model, inputs)
    return output, calls, {call["name"]: call["refused"] for call in calls if "refused" in call} | seen.refused


def run(model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
    output = model(**inputs, use_cache=False)
    return output.logits if hasattr(output, "logits") else output[0]


def examine(call: MixerCall, mixing: Mixing) -> dict[str, Any]:
    """One call, verified; and the largest difference between its closed form and what one-hot values give."""
    found: dict[str, Any] = {"name": call.name, "mixer": call.mixer, "route": call.route}
    if reason := doubt(call.name, call.time_by_size, mixing):
        return found | {"refused": reason}
    try:
        verified = verify(call)
    except Refused as reason:
        return found | {"refused": str(reason)}
    found |= {"route": verified.route, "error": verified.capture_error, "check": verified.check}
    if call.one_hot is not None and "one-hot" not in verified.route:
        T, probe = verified.operator.dense(), read_off(call).double()
        # a mixer that gives a token's own value has its diagonal in one of the two only
        found["one_hot"] = float((T - probe).tril(-1).abs().max() / probe.abs().max())
    return found


def in_fresh_process(name: str) -> dict[str, Any]:
    code = "import json, capture; capture.quiet(); print(json.dumps(capture.measure({!r})))"
    folder = Path(__file__).resolve().parent
    done = subprocess.run(
        [sys.executable, "-c", code.format(name)], capture_output=True, text=True, cwd=folder, timeout=600
    )
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {"verdict": done.stderr[-500:]}


def same(row: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two processes have found the same."""
    keys = ("ran", "same", "calls", "missing", "verdict")
    return all(row.get(key) == other.get(key) for key in keys)


def first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1][:160] if str(error).strip() else type(error).__name__


def line(row: dict[str, Any]) -> str:
    if not row["ran"]:
        return f"{row['name']:26}  {row['verdict']}"
    mixers = Counter((call["mixer"], call["route"]) for call in row["calls"] if "error" in call)
    worst = max((call["error"] for call in row["calls"] if "error" in call), default=float("nan"))
    probe = max((call["one_hot"] for call in row["calls"] if "one_hot" in call), default=float("nan"))
    text = ", ".join(f"{count} {mixer} ({route})" for (mixer, route), count in mixers.items())
    fresh = "" if "fresh" not in row else f"  fresh process {'same' if row['fresh'] else 'DIFFERENT'}"
    logits = "same" if row["same"] else "CHANGED"
    return f"{row['name']:26}  {worst:.0e}  {probe:.0e}  logits {logits}{fresh}  {text}: {row['verdict']}"


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    ran = [row for row in rows if row["ran"]]
    calls = [call for row in ran for call in row["calls"] if "error" in call]
    errors = sorted(call["error"] for call in calls)
    report = {
        "architectures": len(rows),
        "run": len(ran),
        "all mixers captured and verified": sum(row["verdict"] == "all captured" for row in ran),
        "at least one mixer": sum(any("error" in call for call in row["calls"]) for row in ran),
        "logits bit-identical": sum(row["same"] for row in ran),
        "mixer calls verified": len(calls),
        "of these by the model's own weights": sum(call["check"] != "independent" for call in calls),
        "largest capture_error in float64, of models above 1e-6": max(
            (row["error in float64"] for row in ran if "error in float64" in row), default=None
        ),
        "largest capture_error": errors[-1] if errors else None,
        "share of errors at most 1e-6": round(sum(error <= 1e-6 for error in errors) / len(errors), 4)
        if errors
        else None,
        "closed forms compared with one-hot values": sum("one_hot" in call for call in calls),
        "largest difference from one-hot values": max(
            (call["one_hot"] for call in calls if "one_hot" in call), default=None
        ),
        "versions": {"torch": torch.__version__, "transformers": __import__("transformers").__version__},
    }
    if any("fresh" in row for row in rows):
        report["same in a fresh process"] = sum(row.get("fresh", False) for row in rows)
    return report


def markdown(rows: list[dict[str, Any]], report: dict[str, Any]) -> str:
    lines = [
        "# Capture, architecture by architecture",
        "",
        "`python bench/capture.py`, float32 on a CPU, tiny random weights.",
        "",
    ]
    lines += [f"- {key}: {value}" for key, value in report.items()]
    lines += [
        "",
        "| architecture | mixer calls | largest error | from one-hot | logits | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        if not row["ran"]:
            lines.append(f"| {row['name']} | | | | | {row['verdict']} |")
            continue
        mixers = Counter((call["mixer"], call["route"]) for call in row["calls"] if "error" in call)
        text = ", ".join(f"{count} {mixer} ({route})" for (mixer, route), count in mixers.items())
        worst, probe = (
            max((call[key] for call in row["calls"] if key in call), default=None) for key in ("error", "one_hot")
        )
        show = ["" if x is None else f"{x:.0e}" for x in (worst, probe)]
        logits = "same" if row["same"] else "changed"
        lines.append(f"| {row['name']} | {text} | {show[0]} | {show[1]} | {logits} | {row['verdict']} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
