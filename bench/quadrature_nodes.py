"""Derives the nodes and weights of `ess_kernels/engine/quadrature.py`.

    python bench/quadrature_nodes.py NODES [--least X] [--rounds R]

Both `sqrt(x)` and `sqrt(x) log sqrt(x)` on [0, 1] as sums `w_k log(1 + x / t_k)` with common nodes `t_k`: variable
projection (the weights are a least-squares solution for given nodes) with Levenberg-Marquardt over the nodes, in a norm
that is reweighted until the largest error is nearly as small as it gets (Lawson). `--least` is the smallest x but 0 at
which errors are looked at.

Where rounding leaves nothing of a log-determinant at the smallest node, the others must do. A second set of weights for
these lets the errors be larger where `x` is hardly to be seen, by a multiple of the root of its haze: how much more two
neighbouring log-determinants see of it than the next two. It is printed after the first.

The package's tables, `STANDARD`, and `FINE` with `WITHOUT_SMALLEST`, in half a minute:

    python bench/quadrature_nodes.py 16 --least 1e-18 --points 3000 --rounds 80
    python bench/quadrature_nodes.py 22 --least 1e-24 --points 3500 --rounds 40

The search is a long chain of floating-point steps. Its end depends on the order of sums in BLAS, which is why one
thread is asked for before NumPy is loaded; another BLAS may end at nodes a little beside these, with the same errors.
"""

from __future__ import annotations

import argparse
import math
import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np

# errors that the weights without the smallest node are allowed in a haze of one, for one without haze
HAZE_RATIOS = (10.0, 100.0)


def grid(least: float, points: int) -> np.ndarray:
    return np.concatenate([[0.0], np.exp(np.linspace(math.log(least), 0.0, points))])


def targets(x: np.ndarray) -> np.ndarray:
    root = np.sqrt(x)
    return np.stack([root, np.where(x > 0, root * np.log(np.maximum(root, 1e-300)), 0.0)], 1)


class Fit:
    """Weights and errors for given nodes in a weighted norm."""

    def __init__(self, x: np.ndarray, log_t: np.ndarray, norm: np.ndarray):
        self.log_t, t = log_t, np.exp(log_t)
        A = np.log1p(x[:, None] / t)
        scale = np.linalg.norm(A * norm[:, None], axis=0)
        self.Q, triangle = np.linalg.qr(A * norm[:, None] / scale)
        solution = np.linalg.lstsq(triangle, self.Q.T @ (targets(x) * norm[:, None]), rcond=1e-15)[0]
        self.weights = solution / scale[:, None]
        self.error = A @ self.weights - targets(x)
        self.residual = self.error * norm[:, None]
        self.cost = float((self.residual**2).sum())
        slope = -(x[:, None] / t) / (1 + x[:, None] / t)
        # how the residual moves with log t, off the range of the weights (Kaufman's approximation)
        columns = [slope * self.weights[:, f] * norm[:, None] for f in (0, 1)]
        self.jacobian = np.vstack([M - self.Q @ (self.Q.T @ M) for M in columns])


def improve(x: np.ndarray, fit: Fit, norm: np.ndarray, steps: int, damping: float) -> tuple[Fit, float]:
    for _ in range(steps):
        gradient = fit.jacobian.T @ fit.residual.T.ravel()
        hessian = fit.jacobian.T @ fit.jacobian
        for _ in range(8):
            step = -np.linalg.solve(hessian + damping * np.diag(np.diag(hessian) + 1e-300), gradient)
            log_t = np.sort(fit.log_t + step.clip(-0.5, 0.5))
            if np.diff(log_t).min() > 0.05:
                trial = Fit(x, log_t, norm)
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


def reweighted(norm: np.ndarray, error: np.ndarray) -> np.ndarray:
    norm = norm * np.sqrt(error / error.max() + 1e-2)
    return norm / norm.max()


def optimise(x: np.ndarray, count: int, rounds: int) -> Fit:
    """The best fit found."""
    # spacings that widen towards small nodes, as those of the optimum do
    spread = np.sqrt(np.arange(count) + 0.6)
    log_t = 2.5 - 6.0 * (math.sqrt(count) - spread) * math.sqrt(2)
    norm, damping = np.ones_like(x), 1e-3
    best = (math.inf, Fit(x, log_t, norm))
    for _ in range(rounds):
        fit, damping = improve(x, Fit(x, log_t, norm), norm, 10, damping)
        log_t = fit.log_t
        error = np.abs(fit.error).max(1)
        if error.max() < best[0]:
            best = (float(error.max()), fit)
        norm = reweighted(norm, error)
    return best[1]


def haze(x: np.ndarray, t: np.ndarray) -> np.ndarray:
    """What the steps between three neighbouring nodes, each from 0 to 1, see differently."""
    steps = [np.log((1 + x / t[k]) / (1 + x / t[k + 1])) / math.log(t[k + 1] / t[k]) for k in (0, 1)]
    return np.maximum(steps[0] - steps[1], 0.0)


def without_smallest(x: np.ndarray, t: np.ndarray, rounds: int = 200) -> tuple[np.ndarray, list[float]]:
    """Weights `[nodes, 2]` for the nodes but the smallest, and the largest error of each function without haze."""
    t = t[1:]
    A, root, wanted = np.log1p(x[:, None] / t), np.sqrt(haze(x, t)), targets(x)
    weights, errors = [], []
    for function, ratio in enumerate(HAZE_RATIOS):
        allowed = 1 + ratio * root
        norm, best = 1 / allowed, (math.inf, t)
        for _ in range(rounds):
            columns = A * norm[:, None]
            size = np.linalg.norm(columns, axis=0)
            solution = np.linalg.lstsq(columns / size, wanted[:, function] * norm, rcond=1e-15)[0] / size
            error = np.abs(A @ solution - wanted[:, function]) / allowed
            if error.max() < best[0]:
                best = (float(error.max()), solution)
            norm = reweighted(norm, error)
        errors.append(best[0])
        weights.append(best[1])
    return np.stack(weights, 1), errors


def print_table(t: np.ndarray, weights: np.ndarray) -> None:
    for node, (first, second) in zip(t, weights, strict=True):
        print(f"    ({node:.12e}, {first:.12e}, {second:.12e}),")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nodes", type=int)
    parser.add_argument("--least", type=float, default=1e-24)
    parser.add_argument("--points", type=int, default=3500)
    parser.add_argument("--rounds", type=int, default=40)
    arguments = parser.parse_args()
    x = grid(arguments.least, arguments.points)
    fit = optimise(x, arguments.nodes, arguments.rounds)
    t = np.exp(fit.log_t)
    print("# largest errors {:.2e}, {:.2e}".format(*np.abs(fit.error).max(0)))
    print_table(t, fit.weights)
    weights, errors = without_smallest(x, t)
    print("# without the smallest node, largest errors without haze {:.2e}, {:.2e}".format(*errors))
    print_table(t[1:], weights)


if __name__ == "__main__":
    main()
