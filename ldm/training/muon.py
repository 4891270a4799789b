"""Muon: steps of matrices with all singular values made equal (Jordan et al. 2024), with Adam for
everything that is not a matrix, in one optimizer.

Where Adam divides each number of a gradient by its size, Muon replaces the whole matrix U S V^T of
the smoothed gradient by U V^T. It is found without a decomposition, by iterating an odd polynomial
that drives every singular value towards 1; the coefficients are those of Jordan et al. A
convolution is the matrix of its output channels against everything else.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import Optimizer

from ldm.training.sharding import laid_out, whole

_A, _B, _C = 3.4445, -4.7750, 2.0315


class Muon(Optimizer):
    """One learning rate for both parts: a matrix's step is scaled to the root mean square that
    AdamW's steps have, 0.2 (Liu et al. 2025, eq. 4), so that AdamW's rates and schedules fit.

    Momentum is Nesterov's; `betas` and `eps` are Adam's for vectors and scalars; `weight_decay` is
    decoupled. A step costs a few per cent of a training step's time. It needs whole matrices: where
    parameters are split over ranks, each rank gathers a matrix's update and computes all of it.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        *,
        momentum: float = 0.95,
        betas: Sequence[float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        if lr <= 0 or not 0 <= momentum < 1:
            raise ValueError(
                f"Muon was given lr={lr}, momentum={momentum}: set lr > 0 and 0 <= momentum < 1"
            )
        settings = {
            "lr": lr,
            "momentum": momentum,
            "betas": tuple(betas),
            "eps": eps,
            "weight_decay": weight_decay,
        }
        super().__init__(params, settings)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of every parameter that has a gradient; returns what the closure returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            given = [p for p in group["params"] if p.grad is not None]
            for parameter in given:
                if parameter.ndim >= 2:
                    self._matrix_step(parameter, group)
            self._adam_step([p for p in given if p.ndim < 2], group)
        return loss

    def _matrix_step(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        smooth = state["momentum"].lerp_(gradient, 1 - group["momentum"])
        step = orthogonal(whole(gradient.lerp(smooth, group["momentum"])).flatten(1))
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        size = 0.2 * max(step.shape) ** 0.5
        parameter.add_(laid_out(step.view(parameter.shape), parameter), alpha=-group["lr"] * size)

    def _adam_step(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        if not parameters:
            return
        beta1, beta2 = group["betas"]
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros(())
                state["mean"] = torch.zeros_like(parameter)
                state["square"] = torch.zeros_like(parameter)
            state["step"] += 1
        states = [self.state[p] for p in parameters]
        gradients = [p.grad for p in parameters if p.grad is not None]
        means, squares = [s["mean"] for s in states], [s["square"] for s in states]
        torch._foreach_lerp_(means, gradients, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
        counts = [float(s["step"]) for s in states]
        roots = torch._foreach_sqrt(squares)
        torch._foreach_div_(roots, [(1 - beta2**n) ** 0.5 for n in counts])
        torch._foreach_add_(roots, group["eps"])
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        rates = [-group["lr"] / (1 - beta1**n) for n in counts]
        torch._foreach_addcdiv_(parameters, means, roots, rates)


def orthogonal(matrix: Float[Tensor, "r c"], iterations: int = 5) -> Float[Tensor, "r c"]:
    """Nearly U V^T of the matrix's U S V^T, singular values about 0.7 to 1.2, in the matrix's dtype
    (computed in bfloat16 unless it is float64)."""
    exact = matrix.dtype == torch.float64
    x = matrix if exact else matrix.bfloat16()
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.T
    x = x / (x.norm() + 1e-7)
    for _ in range(iterations):
        gram = x @ x.T
        x = _A * x + (_B * gram + _C * gram @ gram) @ x
    return (x.T if tall else x).to(matrix.dtype)
