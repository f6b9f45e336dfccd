"""Content-blind baseline: a smooth function of the length alone, fitted on the training pairs.

    r(y) = sum_k w_k b_k(log(1 + |y|)),   |y| in characters
    loss = mean of -log sigmoid(r_chosen - r_rejected) + l2 / 2 * sum_k (w_k s_k)^2

b is the basis of a restricted cubic spline, which is linear beyond its outer knots (Harrell 2001, Regression Modeling
Strategies, section 2.4.5); s_k is the standard deviation of b_k over the training responses.  The loss is convex, so
the fit needs no seed.
"""

from __future__ import annotations

import numpy as np

from rm_methods.errors import UserError
from rm_methods.methods.contract import ContentBlindMethod


def spline_basis(x: np.ndarray, knots: np.ndarray) -> np.ndarray:
    """Restricted cubic spline, float64 [n, max(1, knots - 1)]: x itself, then one function for each inner interval.

    Args:
        x: float64 [n].
        knots: float64, ascending; fewer than three leave x alone.
    """
    columns = [x]
    if len(knots) > 2:
        last, before = knots[-1], knots[-2]
        scale = (last - knots[0]) ** 2
        for knot in knots[:-2]:
            rest = (last - knot) * np.maximum(x - before, 0) ** 3 - (before - knot) * np.maximum(x - last, 0) ** 3
            columns.append((np.maximum(x - knot, 0) ** 3 - rest / (last - before)) / scale)
    return np.stack(columns, axis=-1)


class Method(ContentBlindMethod):
    def fit(self, pairs):
        from scipy.optimize import minimize

        lengths_P2 = np.log1p([[len(pair.chosen), len(pair.rejected)] for pair in pairs])
        knots = np.unique(np.quantile(lengths_P2, np.linspace(0.05, 0.95, self.settings["knots"])))
        basis_P2K = spline_basis(lengths_P2.ravel(), knots).reshape(len(pairs), 2, -1)
        spread_K = basis_P2K.std(axis=(0, 1))
        usable_K = spread_K > 1e-9  # all responses of one length teach nothing
        spread_K = np.where(usable_K, spread_K, 1.0)
        x_PK = np.where(usable_K, basis_P2K[:, 0] - basis_P2K[:, 1], 0.0) / spread_K
        l2 = self.settings["l2"]

        def loss_and_gradient(w_K: np.ndarray) -> tuple[float, np.ndarray]:
            margins = x_PK @ w_K
            loss = np.logaddexp(0, -margins).mean() + l2 / 2 * (w_K @ w_K)
            return float(loss), l2 * w_K - x_PK.T @ np.exp(-np.logaddexp(0, margins)) / len(pairs)

        start = np.zeros(x_PK.shape[1])
        options = {"gtol": 1e-9, "ftol": 0.0, "maxiter": 10_000}
        w_K = minimize(loss_and_gradient, start, jac=True, method="L-BFGS-B", options=options).x
        return {
            "knots": knots.tolist(),
            "weights": (w_K / spread_K).tolist(),
            "pairs": len(pairs),
            "train_accuracy": float((x_PK @ w_K > 0).mean()),
        }

    def score(self, prompt, response, seed):
        if not self.fitted:
            raise UserError("fitted_length: the scorer was not fitted: run the train stage for it.")
        x = np.log1p(np.array([len(response)], dtype=np.float64))
        return float(spline_basis(x, np.array(self.fitted["knots"]))[0] @ np.array(self.fitted["weights"]))
