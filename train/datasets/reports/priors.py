"""Earlier examinations: gives each study the latest one before it of the same patient."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from vlm.study import Prior, Study


def _has_content(study: Study) -> bool:
    return bool(study.images or study.findings)


def link_priors(
    studies: Sequence[Study], when: Mapping[str, Any], usable: Callable[[Study], bool] = _has_content
) -> None:
    """Set `prior` of each study to the latest study of the same patient that is strictly earlier and `usable`:
    that has images or findings, unless said otherwise. Studies that have a prior keep it.

    `when`: study_id -> anything that can be compared, such as (date, time); a study that is not in it, or has no
    patient_id, neither gets a prior nor is one. Studies of the same moment are not priors of each other,
    whatever their ids; where several are the latest, the one with the greatest id is taken, so that their
    order plays no part. The image paths are those of the earlier study.
    """
    of_patient: dict[str, list[Study]] = defaultdict(list)
    for study in studies:
        if study.patient_id is not None and study.study_id in when:
            of_patient[study.patient_id].append(study)
    for series in of_patient.values():
        series.sort(key=lambda study: (when[study.study_id], study.study_id))
        earlier = latest = None  # the latest usable study before this moment; and up to and with this study
        moment = None
        for study in series:
            if moment is None or moment < when[study.study_id]:
                earlier, moment = latest, when[study.study_id]
            if study.prior is None and earlier is not None:
                images = [replace(image, extra=dict(image.extra)) for image in earlier.images]
                study.prior = Prior(images, earlier.findings)
            if usable(study):
                latest = study
