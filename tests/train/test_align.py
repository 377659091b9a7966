"""Alignment: what reports assert, and a projector that learns to show it."""

import pytest
import torch
from torch import nn

from train.finetune.align import align, mentions, targets

TEXT = (
    "No cardiomegaly. Moderate layering left effusion. Possible consolidation in the right lower lung. "
    "Bibasilar atelectasis. No pneumothorax."
)


class Projector(nn.Module):
    """As stock Llava has it."""

    def __init__(self, channels, width):
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(channels, width), nn.Linear(width, width)

    def forward(self, x):
        return self.linear_2(nn.functional.gelu(self.linear_1(x)))


def test_mentions_are_what_is_asserted_with_its_sides():
    assert mentions(TEXT) == {
        "Pleural Effusion": 1.0,
        "left Pleural Effusion": 1.0,
        "Consolidation": 0.5,
        "right Consolidation": 0.5,
        "Atelectasis": 1.0,
        "left Atelectasis": 1.0,
        "right Atelectasis": 1.0,
    }
    assert mentions("The lungs are clear.") == mentions("") == {}


def test_rare_mentions_are_no_targets():
    reports = ["Cardiomegaly."] * 50 + ["Left rib fracture."] + ["The lungs are clear."] * 149
    names, values = targets(reports)
    assert names == ["Cardiomegaly"]
    assert values.sum() == 50 and values.shape == (200, 1)


def test_alignment_finds_what_a_single_patch_shows_and_keeps_the_scale(tmp_path):
    generator = torch.Generator().manual_seed(0)
    n, places, channels = 400, 16, 12
    x_SNC = torch.randn(n, places, channels, generator=generator)
    sick = torch.rand(n, generator=generator) < 0.4
    where = torch.randint(places, (n,), generator=generator)
    x_SNC[sick.nonzero().flatten(), where[sick]] += 6 * torch.eye(channels)[3]
    reports = ["There is a left rib fracture." if s else "The lungs are clear." for s in sick]
    torch.manual_seed(0)
    projector = Projector(channels, 16)
    with torch.no_grad():
        projector.linear_2.weight.mul_(0.1)
    before = projector(x_SNC).detach()
    said = []
    held_out = (lambda rows: x_SNC[rows][:, :, :], reports)
    align(projector, x_SNC.__getitem__, reports, held_out, steps=300, batch=32, every=300, say=said.append)
    after = projector(x_SNC).detach()
    assert "2 targets" in said[0] and float(said[-1].split("AUROC ")[1].split()[0]) > 0.95
    spread = lambda out: (out - out.mean((0, 1))).std()  # noqa: E731
    assert float(spread(after) / spread(before)) == pytest.approx(1, rel=0.05)
    assert torch.allclose(after.mean((0, 1)), before.mean((0, 1)), atol=0.05 * float(spread(before)))
    assert not torch.allclose(after, before, atol=1e-3)


def test_reports_without_findings_leave_the_projector_alone():
    projector, said = Projector(4, 4), []
    before = {k: v.clone() for k, v in projector.state_dict().items()}
    x_SNC, reports = torch.randn(8, 4, 4), ["The lungs are clear."] * 8
    align(projector, x_SNC.__getitem__, reports, (x_SNC.__getitem__, reports), steps=3, say=said.append)
    assert "left out" in said[0]
    assert all(torch.equal(v, before[k]) for k, v in projector.state_dict().items())
