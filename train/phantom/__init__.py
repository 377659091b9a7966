"""Phantoms: our own synthetic chest X-rays, with everything about them known.

    cxr phantom OUT --studies 2000 --seed 1 --format dicom

`patient.py` draws who is examined and what is to be found, `render.py` turns that into film, `report.py` into
words and labels, `population.py` writes studies. Nothing here is learned or copied from a real image or report.
"""

from train.phantom.film import Film
from train.phantom.patient import Examination, Finding, Patient, draw_patient
from train.phantom.render import render_frontal, render_lateral
from train.phantom.report import Report, write_report

__all__ = [
    "Examination",
    "Film",
    "Finding",
    "Patient",
    "Report",
    "draw_patient",
    "render_frontal",
    "render_lateral",
    "write_report",
]
