"""Judges: metrics of others as families of scores. RadFact and CRIMSON ask a language model on this machine; RaTEScore,
GREEN, CXRFEScore and SRR-BERT run in their authors' packages, with weights that lie in folders."""

from eval.judges.listing import FAMILIES, JUDGES, panel
from eval.judges.panel import Panel

__all__ = ["FAMILIES", "JUDGES", "Panel", "panel"]
