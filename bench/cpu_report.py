"""The figures of `all_positions.py` for people."""

from __future__ import annotations

from typing import Any

from cpu_goals import Judged


def print_rows(rows: list[dict[str, Any]]) -> None:
    print(
        f"{'case':<22} {'metric':<13} {'engine':>10} {'of GEMM':>8} {'paper':>10} {'ratio':>7} {'informed':>11}"
        f" {'ratio':>6}  checks"
    )
    for row in rows:
        checks = f"entropy error {row['error']:.1e}" if "error" in row else f"wrong {row['wrong']} of {row['sampled']}"
        if "redone" in row:
            checks += f" (informed {row['informed_wrong']}), redone {row['redone']:.1%}, unresolved {row['unresolved']}"
        ratios = row["paper_seconds"] / row["seconds"], row["informed_seconds"] / row["seconds"]
        paper = f"~{row['paper_seconds']:.1f}"
        best = f"{'~' if row['informed_sampled'] else ''}{1e3 * row['informed_seconds']:.0f}"
        print(
            f"{row['case']:<22} {row['metric']:<13} {1e3 * row['seconds']:>7.1f} ms {row['fraction']:>8.1%}"
            f" {paper:>8} s {ratios[0]:>7.0f} {best:>8} ms {ratios[1]:>6.1f}  {checks}"
        )
    print()


def print_rest(report: dict[str, Any]) -> None:
    for row in report["spectra"]:
        print(
            f"{row['case']}: {1e3 * row['seconds']:.1f} ms, {row['fraction']:.1%} of the matrix product's rate,"
            f" {row['lapack_seconds'] / row['seconds']:.1f} times as fast as LAPACK;"
            f" largest difference {row['error']:.1e} s_1"
        )
    for row in report["five"]:
        print(f"{row['case']}: five tolerances at once take {row['ratio']:.2f} times as long as one")
    for row in report["scaling"]:
        print(f"{row['case']}, {row['metric']}: {row['threads']} threads are {row['speedup']:.2f} times as fast as one")
    for row in report["growth"]:
        listed = ", ".join(f"{length}: {1e3 * seconds:.0f} ms" for length, seconds in row["seconds"].items())
        upper = row["upper"]
        print(f"{row['case']}: time ~ L^{row['exponent']:.2f} over L = {upper[0]}..{upper[-1]}  ({listed})")
    for row in report["one_position"]:
        one, part = 1e3 * row["seconds"], 1 / row["share"]
        print(f"{row['case']}: the middle position alone takes {one:.1f} ms, 1/{part:.1f} of all positions")
    for row in report["packed"]:
        print(
            f"{row['case']}, {row['metric']}: {row['title']}, packed, take {1e3 * row['seconds']:.0f} ms,"
            f" {row['ratio']:.2f} times as long as {row['against']}"
        )
    memory = report["memory"]
    peak, before = memory["peak"] / 1e9, memory["before"] / 1e9
    print(f"peak memory, {memory['case']}: {peak:.2f} GB ({before:.2f} GB before the call)")


def print_goals(judged: list[Judged]) -> None:
    print(f"\n{'goal':<66} {'measured':>9} {'goal':>7}")
    for goal in judged:
        digits = 0 if goal.goal >= 20 else 2
        print(
            f"{goal.what:<66} {goal.measured:>9.{digits}f} {goal.goal:>7.{digits}f}  {'met' if goal.met else 'MISSED'}"
        )
    met = sum(goal.met for goal in judged)
    print(f"{met} of {len(judged)} met")
