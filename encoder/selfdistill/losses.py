"""The losses of DINOv2 (arXiv 2304.07193): DINO on CLS tokens, iBOT on masked patches, KoLeo against collapse.

Shape letters: B images, M masked patches, K prototypes, D width. Everything is computed in float32. In a run of
several processes the batch of the formulas is the gathered one: its sums go through `all_reduce`, and the losses
returned are means over the images of this process, so that averaging gradients over processes gives the gradient of
the whole batch. All processes must make the same calls.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

TINY = torch.finfo(torch.float32).tiny  # a row or column of the transport plan below it counts as empty


def is_distributed() -> bool:
    """Tell whether torch.distributed runs with more than one process."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def all_reduce(x: Tensor, op=None) -> Tensor:
    """Sum (or `op`) over processes, in place; x itself where there is one process."""
    if is_distributed():
        dist.all_reduce(x, op=dist.ReduceOp.SUM if op is None else op)
    return x


@torch.no_grad()
def sinkhorn_knopp(logits_BK: Tensor, temperature: float, iterations: int = 3) -> Tensor:
    """Return targets (B, K): each row sums to one, and prototypes are used equally often over the gathered
    batch (SwAV, arXiv 2006.09882, algorithm 1).

    Only the scalings u_K and v_B of the plan are iterated, Q = v * exp(logits / temperature) * u; the greatest logit of
    the batch is taken off first, so that nothing overflows. B may be 0 on some processes.
    """
    logits_BK = logits_BK.float()
    greatest = logits_BK.amax() if logits_BK.numel() else logits_BK.new_tensor(-torch.inf)
    all_reduce(greatest, dist.ReduceOp.MAX if is_distributed() else None)
    Q_BK = logits_BK.sub(greatest).div_(temperature).exp_()  # large: in place from here on
    v_B = Q_BK.new_ones(len(Q_BK))
    for _ in range(iterations):
        u_K = 1 / all_reduce(v_B @ Q_BK).clamp(min=TINY)
        v_B = 1 / (Q_BK @ u_K).clamp(min=TINY)
    return Q_BK.mul_(v_B[:, None]).mul_(u_K)


class Centre(nn.Module):
    """DINO's centring: a running mean of the teacher's logits is taken off before the softmax.

    `update` once a step with this step's logits; `targets` uses the mean of the steps before.
    """

    def __init__(self, prototypes: int, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("centre_1K", torch.zeros(1, prototypes))

    @torch.no_grad()
    def targets(self, logits_BK: Tensor, temperature: float) -> Tensor:
        """Return softmax((logits - centre) / temperature), (B, K) in float32 (DINO, arXiv 2104.14294,
        section 3)."""
        return ((logits_BK.float() - self.centre_1K) / temperature).softmax(-1)

    @torch.no_grad()
    def update(self, logits_BK: Tensor) -> None:
        """Move the centre towards the mean of this step's logits (B, K) (DINO, arXiv 2104.14294, eq. 4).

        The mean is over all processes; B may be 0 on some. Collective: every process must call this.
        """
        count = torch.full((1,), float(len(logits_BK)), device=logits_BK.device)
        sums = all_reduce(torch.cat([logits_BK.float().sum(0), count]))
        mean_1K = (sums[:-1] / sums[-1])[None]
        # no sample, or a step that is not finite: the centre stays
        mean_1K = torch.where(mean_1K.isfinite().all(), mean_1K, self.centre_1K)
        self.centre_1K.lerp_(mean_1K, 1 - self.momentum)


def cross_entropy(student_BK: Tensor, targets_BK: Tensor, temperature: float) -> Tensor:
    """Compute -sum_k target log softmax(student / temperature), one value a sample (B,), float32. No gradient
    for targets."""
    return _CrossEntropy.apply(student_BK, targets_BK, temperature)


class _CrossEntropy(torch.autograd.Function):
    """A few rows at a time, so that nothing of size (B, K) is made but the gradient. With 65,536 prototypes and ten
    thousand masked patches each such tensor would take gigabytes."""

    @staticmethod
    def forward(ctx, student_BK: Tensor, targets_BK: Tensor, temperature: float) -> Tensor:
        ctx.save_for_backward(student_BK, targets_BK)
        ctx.temperature = temperature
        loss_B = student_BK.new_empty(len(student_BK), dtype=torch.float32)
        for rows in _chunks(student_BK):
            log_p = (student_BK[rows].float() / temperature).log_softmax(-1)
            loss_B[rows] = -torch.einsum("bk,bk->b", targets_BK[rows].float(), log_p)
        return loss_B

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_B: Tensor) -> tuple[Tensor | None, ...]:
        student_BK, targets_BK = ctx.saved_tensors
        grad_BK = torch.empty_like(student_BK)
        for rows in _chunks(student_BK):
            target = targets_BK[rows].float()
            p = (student_BK[rows].float() / ctx.temperature).softmax(-1)
            p.mul_(target.sum(-1, keepdim=True)).sub_(target)
            grad_BK[rows] = p.mul_((grad_B[rows] / ctx.temperature)[:, None])
        return grad_BK, None, None


def _chunks(x_BK: Tensor) -> Iterator[slice]:
    """Slices of rows: on a CPU so few that they stay near its cache."""
    elements = 2**22 if x_BK.device.type == "cpu" else 2**27
    step = max(1, elements // x_BK.shape[1])
    return (slice(start, start + step) for start in range(0, len(x_BK), step))


def dino_loss(students: Sequence[Tensor], targets: Sequence[Tensor], temperature: float) -> Tensor:
    """Compute the cross-entropy of every student view (B, K) against every target view (B, K), summed over
    pairs, mean over B."""
    # The cross-entropy is linear in the target, so that one softmax a student view is enough.
    target_BK = torch.stack(list(targets)).sum(0)
    return torch.stack([cross_entropy(student, target_BK, temperature).mean() for student in students]).sum()


def ibot_loss(
    student_MK: Tensor, targets_MK: Tensor, weights_M: Tensor, images: int, temperature: float
) -> Tensor:
    """Compute the cross-entropy over masked patches: `weights_M` = 1 / (masked patches of its image), sum
    over M / `images`.

    Images without masked patches count in `images`. With no masked patch at all it is 0 (and keeps the graph).
    """
    return (cross_entropy(student_MK, targets_MK, temperature) * weights_M).sum() / images


def koleo_loss(features_BD: Tensor, gather: bool = True, eps: float = 1e-8) -> Tensor:
    """Compute the Kozachenko-Leonenko loss: -mean log distance to the nearest neighbour on the unit sphere
    (arXiv 1806.03198).

    Neighbours are looked for in the gathered batch (`gather=False`: in that of this process). With fewer than two
    images it is 0 (and keeps the graph).
    """
    with torch.autocast(features_BD.device.type, enabled=False):
        mine_BD = F.normalize(features_BD.float(), eps=eps, dim=-1)
        all_GD, first = mine_BD, 0
        if gather and is_distributed():
            all_GD, first = _gather(mine_BD), dist.get_rank() * len(mine_BD)
        if len(all_GD) < 2:
            return mine_BD.sum() * 0
        with torch.no_grad():
            dots_BG = mine_BD @ all_GD.T
            rows = torch.arange(len(mine_BD), device=mine_BD.device)
            dots_BG[rows, rows + first] = -torch.inf
            nearest_B = dots_BG.argmax(1)
        return -(F.pairwise_distance(mine_BD, all_GD[nearest_B], eps=eps) + eps).log().mean()


class _Gather(torch.autograd.Function):
    """All processes' rows, in the order of ranks; the gradient of a row is the sum over processes."""

    @staticmethod
    def forward(ctx, x_BD: Tensor) -> Tensor:
        parts = [torch.empty_like(x_BD) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x_BD.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, grad_GD: Tensor) -> Tensor:
        grad_GD = grad_GD.contiguous()
        dist.all_reduce(grad_GD)
        return grad_GD.chunk(dist.get_world_size())[dist.get_rank()]


def _gather(x_BD: Tensor) -> Tensor:
    return _Gather.apply(x_BD)


def entropy(probs_BK: Tensor) -> Tensor:
    """Return the mean entropy of the rows in nats; log K for uniform ones."""
    return torch.special.entr(probs_BK.float()).sum(-1).mean()
