"""Student and teacher, targets and losses of the self-distillation.

Shape letters: B images, G global and L local crops an image, P patches, M masked patches, C width, K prototypes.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from encoder.convert import load_backbone, read_tensors
from encoder.selfdistill.heads import DINOHead
from encoder.selfdistill.losses import (
    Centre,
    dino_loss,
    ibot_loss,
    koleo_loss,
    sinkhorn_knopp,
)
from encoder.state_dicts import load_strict
from encoder.vit import CropViT, sincos_positions
from train.common.config import ConfigError
from train.pretrain.config import GLOBAL_CROPS, PretrainConfig
from train.pretrain.data import Batch


class Distilled(nn.Module):
    """Join backbone and heads; student and teacher are two of these."""

    def __init__(self, c: PretrainConfig) -> None:
        super().__init__()
        self.backbone = CropViT(
            c.size,
            c.patch_size,
            c.hidden_size,
            c.num_hidden_layers,
            c.num_attention_heads,
            c.layerscale,
            attention=c.attention,
        )
        if c.position_embedding == "sincos":
            with torch.no_grad():
                self.backbone.pos_embed[:, 1:] = sincos_positions(c.size // c.patch_size, c.hidden_size)
        head = (c.hidden_size, c.head_n_prototypes, c.head_hidden_dim, c.head_bottleneck_dim)
        self.dino_head = DINOHead(*head)
        self.ibot_head = DINOHead(*head) if c.separate_ibot_head else None
        if c.weight_init == "fan_in":
            for layer in self.modules():
                if isinstance(layer, nn.Linear):
                    nn.init.trunc_normal_(layer.weight, std=layer.in_features**-0.5)

    def forward(self, global_x: Tensor, local_x: Tensor | None, batch: Batch, masked: bool):
        """Return CLS features of the global crops, CLS logits of all crops, and logits of the masked patches.

        `masked` hides those patches, for the student; the teacher sees whole crops.
        """
        crops, masks = [global_x], [batch.masks_GBP if masked else None]
        if local_x is not None and len(local_x):
            crops, masks = [*crops, local_x], [*masks, None]
        # The heads see only CLS and masked patches.
        cls_SC, patches_MC = self.backbone.forward_wanted(
            crops, masks, batch.residual_LRS if masked else None, batch.masked_M
        )
        if self.ibot_head is None:
            logits = self.dino_head(torch.cat([cls_SC, patches_MC]))
            logits_SK, logits_MK = logits.split([len(cls_SC), len(patches_MC)])
        else:
            logits_SK, logits_MK = self.dino_head(cls_SC), self.ibot_head(patches_MC)
        return cls_SC[: len(global_x)], logits_SK, logits_MK


class Targets(nn.Module):
    """Turn the teacher's logits into targets; keep the running centres where those are used."""

    def __init__(self, c: PretrainConfig) -> None:
        super().__init__()
        self.sinkhorn = c.centring == "sinkhorn_knopp"
        self.cls, self.patch = (
            (None, None) if self.sinkhorn else (Centre(c.head_n_prototypes), Centre(c.head_n_prototypes))
        )

    def forward(self, cls_SK: Tensor, patch_MK: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """Return targets for CLS (S, K) and masked patches (M, K), each row summing to 1.

        Running centres are updated after use. Collective: every process must call this.
        """
        if self.sinkhorn:
            return sinkhorn_knopp(cls_SK, temperature), sinkhorn_knopp(patch_MK, temperature)
        targets = self.cls.targets(cls_SK, temperature), self.patch.targets(patch_MK, temperature)
        self.cls.update(cls_SK)
        self.patch.update(patch_MK)
        return targets


def losses(
    c: PretrainConfig, student: tuple[Tensor, ...], targets: tuple[Tensor, Tensor], batch: Batch
) -> dict[str, Tensor]:
    """Return the parts, and `loss`, their weighted sum. DINO's terms are means over pairs of views."""
    cls_SC, logits_SK, logits_MK = student
    B = len(cls_SC) // GLOBAL_CROPS
    views = logits_SK.split(B)
    target_views = targets[0].split(B)
    # A global crop is matched with the other one, a local crop with both.
    dino_global = sum(
        dino_loss([views[i]], target_views[:i] + target_views[i + 1 :], c.student_temp)
        for i in range(GLOBAL_CROPS)
    )
    pairs_global, pairs_local = GLOBAL_CROPS * (GLOBAL_CROPS - 1), GLOBAL_CROPS * c.local_crops_number
    parts = {"dino_global": dino_global / pairs_global}
    dino = dino_global
    if c.local_crops_number:
        dino_local = dino_loss(views[GLOBAL_CROPS:], target_views, c.student_temp)
        parts["dino_local"] = dino_local / pairs_local
        dino = dino + dino_local
    parts["ibot"] = ibot_loss(logits_MK, targets[1], batch.weights_M, len(cls_SC), c.student_temp)
    parts["koleo"] = sum(koleo_loss(crop_BC, c.koleo_gather) for crop_BC in cls_SC.split(B))
    total = c.dino_loss_weight * dino / (pairs_global + pairs_local)
    parts["loss"] = total + c.ibot_loss_weight * parts["ibot"] + c.koleo_loss_weight * parts["koleo"]
    return parts


def initialise(student: Distilled, c: PretrainConfig) -> str:
    """Load the encoder and the head that the recipe starts from. -> what was loaded, for the log.

    Raises ConfigError where they cannot be read, or their shapes are not the recipe's.
    """
    loaded = []
    if c.init:
        try:
            found = load_backbone(c.init, size=c.size, heads=c.num_attention_heads)
        except (OSError, ValueError, SafetensorError) as error:
            raise ConfigError(f"--init {c.init}: {error}") from error
        theirs = found.backbone
        wanted = {
            "hidden_size": (theirs.embed_dim, c.hidden_size),
            "num_hidden_layers": (theirs.depth, c.num_hidden_layers),
            "patch_size": (theirs.patch, c.patch_size),
        }
        different = [f"{k} is {a} there and {b} in the recipe" for k, (a, b) in wanted.items() if a != b]
        if different:
            raise ConfigError(f"--init {c.init}: {', '.join(different)}")
        load_strict(student.backbone, theirs.state_dict())
        loaded.append(f"{found.tensors} tensors of {c.init} ({found.dialect})")
    if c.init_head:
        try:
            state = read_tensors(Path(c.init_head))
            state = {name.removeprefix("dino_head."): x for name, x in state.items()}
            for head in filter(None, (student.dino_head, student.ibot_head)):
                load_strict(head, state)
        except (OSError, ValueError, SafetensorError) as error:
            raise ConfigError(f"--init_head {c.init_head}: {error}") from error
        loaded.append(f"{len(state)} of {c.init_head}")
    return "; ".join(loaded)


def backbone_of(teacher: dict[str, Tensor], c: PretrainConfig) -> CropViT:
    """Return the backbone in a teacher's state dict, whose tensors must be whole."""
    with torch.device("meta"):
        backbone = Distilled(c).backbone
    state = {k.removeprefix("backbone."): x for k, x in teacher.items() if k.startswith("backbone.")}
    backbone.load_state_dict(state, assign=True)
    return backbone
