"""An optimiser for matrices."""
import torch

from stage import HALF


class Muon:
    """Momentum whose update is made orthogonal (Newton-Schulz, Keller Jordan 2024): about twice Adam's progress a step here."""

    def __init__(self, matrices, parts=None):
        """`parts` are factors of the rate, one a matrix."""
        self.matrices, self.momentum = matrices, [torch.zeros_like(p) for p in matrices]
        self.parts = parts or [1.0] * len(matrices)

    def clear(self):
        for p in self.matrices:
            p.grad = None

    @torch.no_grad()
    def step(self, rate):
        for p, m, part in zip(self.matrices, self.momentum, self.parts):
            if p.grad is None:
                continue
            m.lerp_(p.grad, 0.1)
            x = p.grad.lerp(m, 0.9).flatten(1)
            x = x / (x.norm() + 1e-7)
            x = x.bfloat16() if HALF else x  # the steps forgive the rounding
            tall = x.shape[0] > x.shape[1]
            x = x.T if tall else x
            for _ in range(5):
                a = x @ x.T
                x = 3.4445 * x + (-4.775 * a + 2.0315 * a @ a) @ x
            p.add_((x.T if tall else x).view_as(p), alpha=-rate * part)
