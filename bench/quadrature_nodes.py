"""Derives the nodes and weights of `ess_kernels/engine/quadrature.py`.

    python bench/quadrature_nodes.py NODES [--floor T --below X --ratio R]

Both `sqrt(x)` and `sqrt(x) log sqrt(x)` on [0, 1] as sums `w_k log(1 + x / t_k)` with common nodes `t_k`: variable
projection (the weights are a least-squares solution for given nodes) with Levenberg-Marquardt over the nodes, in a norm
that is reweighted until the largest error is nearly as small as it gets (Lawson). With `--floor` no node lies below T,
so that no rounding error is amplified there, and errors at `x < X` may be R times larger than above.

The package's tables:

    python bench/quadrature_nodes.py 16
    python bench/quadrature_nodes.py 24 --floor 3e-15 --below 1e-12 --ratio 100
"""

from __future__ import annotations

import argparse
import math

import numpy as np

GRID = np.concatenate([[0.0], np.exp(np.linspace(math.log(1e-18), 0.0, 3000))])


def targets(x: np.ndarray) -> np.ndarray:
    root = np.sqrt(x)
    return np.stack([root, np.where(x > 0, root * np.log(np.maximum(root, 1e-300)), 0.0)], 1)


class Fit:
    """Weights and errors for given nodes in a weighted norm."""

    def __init__(self, log_t: np.ndarray, norm: np.ndarray):
        self.log_t, t = log_t, np.exp(log_t)
        A = np.log1p(GRID[:, None] / t)
        scale = np.linalg.norm(A * norm[:, None], axis=0)
        self.Q, triangle = np.linalg.qr(A * norm[:, None] / scale)
        solution = np.linalg.lstsq(triangle, self.Q.T @ (targets(GRID) * norm[:, None]), rcond=1e-15)[0]
        self.weights = solution / scale[:, None]
        self.error = A @ self.weights - targets(GRID)
        self.residual = self.error * norm[:, None]
        self.cost = float((self.residual**2).sum())
        slope = -(GRID[:, None] / t) / (1 + GRID[:, None] / t)
        # how the residual moves with log t, off the range of the weights (Kaufman's approximation)
        columns = [slope * self.weights[:, f] * norm[:, None] for f in (0, 1)]
        self.jacobian = np.vstack([M - self.Q @ (self.Q.T @ M) for M in columns])


def improve(fit: Fit, norm: np.ndarray, floor: float, steps: int, damping: float) -> tuple[Fit, float]:
    for _ in range(steps):
        gradient = fit.jacobian.T @ fit.residual.T.ravel()
        hessian = fit.jacobian.T @ fit.jacobian
        for _ in range(8):
            step = -np.linalg.solve(hessian + damping * np.diag(np.diag(hessian) + 1e-300), gradient)
            log_t = np.maximum(np.sort(fit.log_t + step.clip(-0.5, 0.5)), floor)
            if np.diff(log_t).min() > 0.05:
                trial = Fit(log_t, norm)
                if trial.cost < fit.cost:
                    done = fit.cost - trial.cost < 1e-7 * fit.cost
                    fit, damping = trial, max(damping * 0.3, 1e-12)
                    break
            damping *= 4
        else:
            return fit, damping
        if done:
            break
    return fit, damping


def optimise(count: int, floor: float, below: float, ratio: float, rounds: int = 80) -> tuple[float, Fit]:
    """The best fit found and its largest weighted error."""
    allowed = np.where(below > GRID, ratio, 1.0)
    # spacings that widen towards small nodes, as those of the optimum do
    spread = np.sqrt(np.arange(count) + 0.6)
    log_t = 2.5 - 6.0 * (math.sqrt(count) - spread) * math.sqrt(2)
    if floor > 0:
        lowest = math.log(floor)
        log_t = lowest + (log_t - log_t[0]) * (3.0 - lowest) / (log_t[-1] - log_t[0])
    else:
        lowest = -math.inf
    norm, damping = 1 / allowed, 1e-3
    best = (math.inf, Fit(log_t, norm))
    for _ in range(rounds):
        fit, damping = improve(Fit(log_t, norm), norm, lowest, 10, damping)
        log_t = fit.log_t
        error = np.abs(fit.error).max(1) / allowed
        if error.max() < best[0]:
            best = (float(error.max()), fit)
        norm = norm * np.sqrt(error / error.max() + 1e-2)
        norm /= norm.max()
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nodes", type=int)
    parser.add_argument("--floor", type=float, default=0.0)
    parser.add_argument("--below", type=float, default=0.0)
    parser.add_argument("--ratio", type=float, default=1.0)
    arguments = parser.parse_args()
    _, fit = optimise(arguments.nodes, arguments.floor, arguments.below, arguments.ratio)
    error = np.abs(fit.error).max(1)
    above = arguments.below <= GRID
    print(f"# largest error {error[above].max():.2e}, below {arguments.below:g}: {error[~above].max(initial=0.0):.2e}")
    for log_t, (first, second) in zip(fit.log_t, fit.weights, strict=True):
        print(f"    ({math.exp(log_t):.12e}, {first:.12e}, {second:.12e}),")


if __name__ == "__main__":
    main()
