"""One-class support vector machine: fitted by scikit-learn, scored by matrix products."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from sklearn import svm
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted, validate_data

CHUNK_ELEMENTS = 2**19
"""Kernel values computed at a time: they stay in the processor's cache."""

MANY = 20_000
"""Queries above which double precision is not worth its time."""


class OneClassSVM(OutlierMixin, BaseEstimator):
    r"""One-class SVM with a radial kernel: scikit-learn's contract and values, scored many times faster.

    .. math:: f(x) = \sum_j \alpha_j \exp(-\gamma \lVert x - x_j \rVert^2) - \rho

    over the support vectors x_j, with :math:`0 \le \alpha_j \le 1` and :math:`\sum \alpha_j = \nu n`
    (Schoelkopf et al., Neural Computation 2001, in the scaling of libsvm). Fitting is scikit-learn's;
    scoring is a matrix product and an exponential per chunk of queries, on any torch device.
    Signs are scikit-learn's: **low is anomalous**; f < 0 for outliers.

    Args:
        nu: upper bound of the share of training samples outside, lower bound of the share of support
            vectors, in (0, 1].
        gamma: "scale" for 1 / (dimension x variance), "auto" for 1 / dimension, or a number.
        tol: stopping tolerance of the solver.
        max_iter: of the solver, -1 for no limit.
        device: torch device that scores, for example "cuda"; None for the processor.

    Attributes:
        support_, support_vectors_, dual_coef_, intercept_, offset_, n_iter_: as in
            `sklearn.svm.OneClassSVM`.
        gamma_: the number that gamma stands for.

    Note:
        float32 queries, and more than `MANY` of any type, are scored in float32: agreement with
        scikit-learn is then about 1e-6 of the spread of the scores. Others are scored in float64.

    Example:
        >>> normal = np.random.default_rng(0).normal(size=(500, 4))
        >>> model = OneClassSVM(nu=0.03).fit(normal)
        >>> bool(model.score_samples([[9.0] * 4])[0] < model.score_samples([[0.0] * 4])[0])
        True
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "nu": [Interval(Real, 0, 1, closed="right")],
        "gamma": [StrOptions({"scale", "auto"}), Interval(Real, 0, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="neither")],
        "max_iter": [Interval(Integral, -1, None, closed="left")],
        "device": [str, torch.device, None],
    }

    def __init__(
        self,
        nu: float = 0.03,
        gamma: float | Literal["scale", "auto"] = "scale",
        *,
        tol: float = 1e-3,
        max_iter: int = -1,
        device: str | torch.device | None = None,
    ) -> None:
        self.nu = nu
        self.gamma = gamma
        self.tol = tol
        self.max_iter = max_iter
        self.device = device

    def fit(self, X: Any, y: Any = None) -> OneClassSVM:
        """Estimate the support of the samples X (n, d); y is not used."""
        self._validate_params()
        X = validate_data(self, X, dtype=np.float64)
        fitted = svm.OneClassSVM(
            kernel="rbf",
            nu=self.nu,
            gamma=self.gamma,  # type: ignore[arg-type]
            tol=self.tol,
            max_iter=self.max_iter,
        ).fit(X)
        self.support_ = fitted.support_
        self.support_vectors_ = fitted.support_vectors_
        self.dual_coef_ = fitted.dual_coef_
        self.intercept_ = fitted.intercept_
        self.offset_ = fitted.offset_
        self.n_iter_ = fitted.n_iter_
        self.gamma_ = float(fitted._gamma)
        return self

    def score_samples(self, X: Any) -> np.ndarray:
        """Unshifted scores sum_j alpha_j k(x_j, x), (n,) float64; low is anomalous."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=(np.float64, np.float32), reset=False)
        queries = torch.from_numpy(np.require(X, requirements=["C", "W"]))
        kind = torch.float32 if len(X) > MANY else queries.dtype
        scores = kernel_sums(queries, [self], self.device or "cpu", kind)
        return scores[:, 0].double().numpy()

    def decision_function(self, X: Any) -> np.ndarray:
        """Signed distance f to the estimated support, (n,) float64; negative outside."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> np.ndarray:
        """1 for samples inside the support, -1 for outliers."""
        return np.where(self.decision_function(X) >= 0, 1, -1)


@torch.no_grad()
def kernel_sums(
    queries: torch.Tensor,
    machines: list[OneClassSVM],
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Unshifted scores of the same queries under several fitted machines, in one pass.

    Args:
        queries: (n, d), float32 or float64.
        machines: fitted on d dimensions; each may have its own gamma.
        device: where to compute.
        dtype: of the arithmetic and of the result; None for that of the queries.

    Returns:
        (n, machines) on the processor.
    """
    dtype = dtype or queries.dtype
    vectors = np.concatenate([m.support_vectors_ for m in machines])
    gammas = np.concatenate([np.full(len(m.support_vectors_), m.gamma_) for m in machines])
    gammas = gammas / np.log(2)  # powers of two take less time than those of e
    # Differences are wanted, so the origin is free: near the data it costs the fewest digits in float32.
    origin = vectors.mean(axis=0)
    centred = vectors - origin
    # [x, |x|^2, 1] . [2 g v, -g, -g |v|^2] is the exponent -g |x - v|^2: one matrix product gives it
    factors = np.column_stack([2 * gammas[:, None] * centred, -gammas, -gammas * (centred**2).sum(axis=1)])
    ends = np.cumsum([len(m.support_vectors_) for m in machines])
    right = torch.as_tensor(factors.T.copy(), dtype=dtype, device=device)
    alphas = [torch.as_tensor(m.dual_coef_[0], dtype=dtype, device=device) for m in machines]
    shift = torch.as_tensor(origin, dtype=queries.dtype, device=device)
    chunk = max(CHUNK_ELEMENTS // len(vectors), 256)
    if torch.device(device).type != "cpu":
        chunk *= 256
    chunk = max(min(chunk, len(queries)), 1)
    d = queries.shape[1]
    # written over by every chunk: fresh memory for each would take as long as the arithmetic
    lefts = torch.ones((chunk, d + 2), dtype=dtype, device=device)
    kernels = torch.empty((chunk, len(vectors)), dtype=dtype, device=device)
    out = torch.empty((len(queries), len(machines)), dtype=dtype)
    for begin in range(0, len(queries), chunk):
        x = queries[begin : begin + chunk].to(device)
        left, kernel = lefts[: len(x)], kernels[: len(x)]
        left[:, :d] = x - shift
        torch.linalg.vecdot(left[:, :d], left[:, :d], out=left[:, d])
        torch.mm(left, right, out=kernel).exp2_()
        # each machine's own columns times its weights: one product with all weights takes many times as long
        parts = kernel.tensor_split(ends[:-1].tolist(), dim=1)
        sums = [torch.mv(part, alpha) for part, alpha in zip(parts, alphas, strict=True)]
        out[begin : begin + chunk] = torch.stack(sums, dim=1)
    return out
