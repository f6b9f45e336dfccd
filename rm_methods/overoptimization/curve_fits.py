"""The curves of Gao et al., "Scaling Laws for Reward Model Overoptimization" (ICML 2023, arXiv:2210.10760, section
3.1).

With d = sqrt(KL) and R the gold reward less that of the initial policy:

    Best-of-n:               R(d) = d (a - b d)         highest at d* = a / (2 b),        where R* = a^2 / (4 b)
    reinforcement learning:  R(d) = d (a - b log d)     highest at d* = exp(a / b - 1),   where R* = b d*

Both are linear in a and b, so they are fitted by ordinary least squares on R, without weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from rm_methods.errors import UserError, nearest

FORMS = ("best_of_n", "reinforcement_learning")
MIN_POINTS = 4  # two parameters fit any two points exactly; the form needs at least two more


@dataclass(frozen=True)
class CurveFit:
    """A fitted curve, or the reason for its absence.

    Attributes:
        form: one of `FORMS`.
        a, b: coefficients, gold per unit of d; NaN without a fit.
        best_d, best_reward: d* and R*; NaN if `refused` gives a reason.
        r_squared: 1 - residual / total sum of squares (about the mean); NaN without a fit.
        n_points: points used, those with d > 0.
        refused: "", or the reason for a missing fit or optimum.
    """

    form: str
    a: float
    b: float
    best_d: float
    best_reward: float
    r_squared: float
    n_points: int
    refused: str = ""

    def reward(self, d: np.ndarray) -> np.ndarray:
        """R(d) of the fitted curve, float64, the shape of `d`; 0 at d = 0."""
        d = np.asarray(d, dtype=np.float64)
        return d * (self.a - self.b * _slope(self.form, d))


def fit_curve(kl: np.ndarray, reward: np.ndarray, form: str) -> CurveFit:
    """Least-squares fit of one of the two forms.

    Args:
        kl: KL divergences in nats, float64 [points]; points without divergence (KL <= 0) carry no information and are
            left out.
        reward: gold reward less that of the initial policy, float64 [points].
        form: one of `FORMS`.

    Returns:
        the fit; `refused` tells why coefficients or optimum are missing: too few points, all at one distance, b <= 0
        (the curve never turns down, so it has no highest point), or an optimum beyond twice the largest distance seen.

    Raises:
        UserError: unknown form, or a value that is not finite.
    """
    if form not in FORMS:
        raise UserError(f"Unknown form of curve {form!r}. {nearest(form, FORMS)}")
    kl = np.asarray(kl, dtype=np.float64)
    reward = np.asarray(reward, dtype=np.float64)
    if not (np.isfinite(kl).all() and np.isfinite(reward).all()):
        raise UserError(
            "A curve cannot be fitted to values that are not finite; look for NaN in the KL divergences and rewards."
        )
    used = kl > 0
    d = np.sqrt(kl[used])
    reward = reward[used]
    nothing = CurveFit(
        form=form,
        a=math.nan,
        b=math.nan,
        best_d=math.nan,
        best_reward=math.nan,
        r_squared=math.nan,
        n_points=len(d),
    )
    distances = len(np.unique(np.round(d, 9)))
    if distances < MIN_POINTS:
        return _refuse(nothing, f"too few points: {distances} different distances, at least {MIN_POINTS} are needed")
    columns = np.column_stack([d, -d * _slope(form, d)])
    (a, b), *_ = np.linalg.lstsq(columns, reward, rcond=None)
    total = ((reward - reward.mean()) ** 2).sum()
    if total < 1e-20:
        return _refuse(nothing, "the gold reward is the same at every distance")
    residual = ((reward - columns @ [a, b]) ** 2).sum()
    fit = replace(nothing, a=float(a), b=float(b), r_squared=float(1 - residual / total))
    return _with_optimum(fit, float(d.max()))


def _with_optimum(fit: CurveFit, farthest: float) -> CurveFit:
    a = fit.a
    b = fit.b
    if b <= 0:
        return _refuse(
            fit, f"b = {b:.3g} is not above 0: the curve does not turn down within the data, so it has no highest point"
        )
    if fit.form == "best_of_n":
        best_d = a / (2 * b)
        best_reward = a**2 / (4 * b)
    else:
        # exp overflows where b is nearly 0; such an optimum is refused below anyway.
        best_d = math.exp(min(a / b - 1, 700.0))
        best_reward = b * best_d
    if best_d <= 0:
        return _refuse(
            fit, f"a = {a:.3g} is not above 0: the curve falls from the start, so its highest point is d = 0"
        )
    if best_d > 2 * farthest:
        return _refuse(fit, f"the optimum d = {best_d:.3g} is beyond twice the farthest point ({farthest:.3g})")
    return replace(fit, best_d=best_d, best_reward=best_reward)


def _refuse(fit: CurveFit, reason: str) -> CurveFit:
    return replace(fit, refused=reason)


def _slope(form: str, d: np.ndarray) -> np.ndarray:
    """What b multiplies, over d: d or log d."""
    return d if form == "best_of_n" else np.log(np.where(d > 0, d, 1.0))
