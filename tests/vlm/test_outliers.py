"""The out-of-distribution check: against scipy's Mahalanobis distance, and on what it is for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import mahalanobis

from vlm.outliers import Outliers, Part, embedding, split


def cloud(n: int, seed: int = 0) -> torch.Tensor:
    x = torch.randn(n, 8, generator=torch.Generator().manual_seed(seed))
    return x * torch.tensor([5.0, 4, 3, 2, 1, 1, 0.5, 0.5]) + 7


def test_a_distance_that_is_hardly_too_large_does_not_read_as_the_usual_one():
    known = Outliers([], 0, "")
    said = {far: known.message(far) for far in (1.0001, 1.034, 1.06, 3.26)}
    for far, times in {1.0001: "1.01", 1.034: "1.04", 1.06: "1.1", 3.26: "3.3"}.items():
        assert f"({times} times the distance up to which a film is ordinary)" in said[far]
    assert "1.01 times" in known.abstains(1.0001)


def test_with_every_direction_kept_it_is_mahalanobis_distance():
    """The limit is that of every image, by the three quarters it is not among."""
    x_NC, new = cloud(400).double().numpy(), cloud(20, 1)
    # more than all directions
    part = Part.fit(torch.from_numpy(x_NC), quantile=1.0, keep=1.1, patients_N=torch.arange(400))

    def distances(fit_NC, others):
        inverse = np.linalg.inv(np.cov(fit_NC.T))
        return [mahalanobis(x, fit_NC.mean(0), inverse) for x in others]

    quarters = [np.arange(400) % 4 == i for i in range(4)]
    limit = max(far for rows in quarters for far in distances(x_NC[~rows], x_NC[rows]))
    wanted = np.array(distances(x_NC, new.double().numpy())) / limit
    np.testing.assert_allclose(part.distance(new).numpy(), wanted, rtol=3e-3)


def test_the_limit_is_no_matter_of_luck():
    """Set by one quarter of 200 images, the share of new ones beyond it spreads twice as far (0.031)."""
    new, shares = cloud(4000, 99), []
    for seed in range(12):
        outliers = Outliers.fit(cloud(200, seed), parts=1, quantile=0.98)
        shares.append(float((outliers.check(new) > 1).float().mean()))
    assert 0.01 < np.mean(shares) < 0.03 and np.std(shares) < 0.02, shares


def test_the_limit_lets_the_promised_share_pass():
    outliers = Outliers.fit(cloud(4000), parts=1, quantile=0.95)
    share = float((outliers.check(cloud(4000, 1)) > outliers.threshold).float().mean())
    assert 0.03 < share < 0.08


def test_films_of_one_patient_are_left_out_together():
    """Five films of each of 120 patients, a tenth of the spread from one to the next: who is known by his other films
    is near, and a limit that is set by such warns of twice as many strangers."""

    def films(patients: int, seed: int, each: int):
        return cloud(patients, seed).repeat_interleave(each, 0) + 0.1 * cloud(patients * each, seed + 1)

    new_NC, shares = films(3000, 50, 1), []
    for patients in (None, [str(i // 5) for i in range(600)]):
        fitted = [
            Outliers.fit(films(120, seed, 5), parts=1, quantile=0.95, keep=0.99, patients=patients)
            for seed in range(0, 24, 4)
        ]
        shares.append(np.mean([float((found.check(new_NC) > 1).float().mean()) for found in fitted]))
    assert shares[0] > 0.08 and 0.03 < shares[1] < 0.06, shares


def test_what_lies_off_the_kept_directions_is_seen():
    x_NC = cloud(400)
    x_NC[:, 4:] = 7 + 0.01 * x_NC[:, 4:]  # hardly anything varies there
    outliers = Outliers.fit(x_NC, parts=1, keep=0.999)
    assert outliers.parts[0].directions_CK.shape[1] == 4
    odd = x_NC[:1].clone()
    odd[0, 6] += 4
    assert outliers.check(odd) > 3


def test_between_two_kinds_nothing_is_usual():
    two = torch.cat([cloud(300), cloud(300, 1) + 60])
    between = cloud(20, 2) + 30
    outliers = Outliers.fit(two, parts=2)
    assert len(outliers.parts) == 2 and (outliers.check(between) > 2).all()
    assert (outliers.check(torch.cat([cloud(99, 3), cloud(99, 4) + 60])) < 1).float().mean() > 0.9
    assert (Outliers.fit(two, parts=1).check(between) < 1).all()  # which is why there are parts


def test_parts_too_small_to_know_are_dissolved():
    few = torch.cat([cloud(300), cloud(20, 1) + 60])
    assert [int(mask.sum()) for mask in split(few.double(), 3)] == [320]
    assert sum(int(m.sum()) for m in split(torch.cat([cloud(300), cloud(100, 1) + 60]).double(), 2)) == 400


def test_saved_and_loaded_it_says_the_same(tmp_path):
    outliers = Outliers.fit(cloud(400), encoder_sha256="abc")
    outliers.save(tmp_path / "ood.safetensors")
    again = Outliers.load(tmp_path / "ood.safetensors")
    torch.testing.assert_close(again.check(cloud(9, 2)), outliers.check(cloud(9, 2)), rtol=0, atol=0)
    assert (again.threshold, again.reference, again.encoder_sha256) == (1.0, 400, "abc")


def test_too_few_or_broken_features_are_refused():
    with pytest.raises(ValueError, match="at least 40"):
        Outliers.fit(cloud(10))
    broken = cloud(100)
    broken[3, 3] = torch.nan
    with pytest.raises(ValueError, match="finite"):
        Outliers.fit(broken)


def test_the_message_says_what_to_do():
    outliers = Outliers.fit(cloud(100))
    assert "frontal chest X-ray" in outliers.message(9.0) and "9.0 times" in outliers.message(9.0)


def test_the_command_fits_a_models_encoder(findings_model, studies_file, tmp_path, capsys):
    from cxr.cli.main import main as cxr
    from vlm import model as models

    def main(words):
        return cxr(["outliers", *words])

    models.save(findings_model, tmp_path / "m")
    (studies_file.parent / "images" / "broken.png").write_bytes(b"nothing")
    out = tmp_path / "m" / "ood.safetensors"
    assert main([str(tmp_path / "m"), str(studies_file.parent / "images"), "--out", str(out)]) == 3
    (studies_file.parent / "images" / "broken.png").unlink()
    assert "1 images cannot be read" in capsys.readouterr().err
    outliers = Outliers.load(out)
    assert outliers.encoder_sha256 == findings_model.meta.encoder_sha256
    tower = findings_model.llava.model.vision_tower
    assert embedding(tower, torch.zeros(2, 3, 28, 28)).shape == (2, len(outliers.parts[0].mean_C))
    assert main([str(tmp_path / "m"), "x.png", "--out", str(out)]) == 2


def test_a_second_reference_says_what_is_no_chest_film(tmp_path, findings_model):
    """Three kinds: the model's own, other chests, and what is neither."""
    own, chest, neither = cloud(300), cloud(300, 1) + 40, cloud(20, 2) + 400
    outliers = Outliers.fit(own, parts=1)
    outliers.chest = Outliers.fit(torch.cat([own, chest]), parts=2)
    outliers.words = 2.5
    outliers.save(tmp_path / "ood.safetensors")
    again = Outliers.load(tmp_path / "ood.safetensors")
    assert again.words == 2.5 and again.false_alarms == outliers.false_alarms and again.chest is not None
    for x_NC, strange, foreign in ((own, False, False), (chest, True, False), (neither, True, True)):
        assert ((again.check(x_NC) > 1).float().mean() > 0.5) == strange
        assert ((again.chest.check(x_NC) > again.chest.threshold).float().mean() > 0.5) == foreign
    assert "--insist" in again.abstains(3.0) and oct((tmp_path / "ood.safetensors").stat().st_mode)[-1] == "4"


@pytest.mark.parametrize("damage", ["threshold nan", "threshold 0", "schema 9", "nan in a part", "cut off"])
def test_statistics_that_would_never_warn_are_refused(tmp_path, damage):
    from safetensors import safe_open
    from safetensors.torch import save_file

    from encoder.errors import ModelError

    file = tmp_path / "ood.safetensors"
    Outliers.fit(cloud(300), parts=1).save(file)
    with safe_open(file, "pt") as opened:
        numbers = dict(opened.metadata())
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    if damage == "cut off":
        file.write_bytes(file.read_bytes()[:100])
    else:
        if damage == "nan in a part":
            tensors["0.std_K"][0] = torch.nan
        else:
            name, value = damage.split()
            numbers[name] = value
        save_file(tensors, file, metadata=numbers)
    with pytest.raises(ModelError, match=str(file)):
        Outliers.load(file)


@pytest.mark.parametrize(
    "damage",
    [
        ("0.mean_C", lambda x: x[:-1]),
        ("0.mean_C", lambda x: x[None]),
        ("0.directions_CK", lambda x: x.T.contiguous()),
        ("0.directions_CK", lambda x: x[:, :-1].contiguous()),
        ("0.std_K", lambda x: x.sum()),
        ("0.std_K", lambda x: x[:, None]),
        ("0.rest_std", lambda x: x[None]),
        ("0.limit", lambda x: x.int()),
        ("0.limit", lambda x: -x),
        ("0.rest_std", lambda x: 0 * x),
        ("0.std_K", lambda x: -x),
        ("chest.0.mean_C", lambda x: x[1:].clone()),
    ],
    ids=lambda damage: damage[0],
)
def test_statistics_whose_tensors_do_not_fit_are_refused_when_they_are_read(tmp_path, damage):
    from safetensors import safe_open
    from safetensors.torch import save_file

    from encoder.errors import ModelError

    file = tmp_path / "ood.safetensors"
    known = Outliers.fit(cloud(300), parts=1)
    known.chest = Outliers.fit(cloud(300), parts=1)
    known.save(file)
    with safe_open(file, "pt") as opened:
        numbers = dict(opened.metadata())
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    name, spoil = damage
    tensors[name] = spoil(tensors[name])
    save_file(tensors, file, metadata=numbers)
    # Of two that do not fit each other, either may be the one.
    either = f"{name}|{name.replace('mean_C', 'directions_CK').replace('std_K', 'directions_CK')}"
    with pytest.raises(
        ModelError, match=f"{file}.*tensor ({either}) (is .*, not float of shape|must be above 0)"
    ):
        Outliers.load(file)


def test_statistics_of_another_width_than_the_encoders_are_refused(findings_model, tmp_path):
    from encoder.errors import ModelError
    from vlm import model as models
    from vlm.findings import OUTLIERS, Findings

    models.save(findings_model, tmp_path / "m")
    sha256 = findings_model.meta.encoder_sha256
    Outliers.fit(cloud(300), parts=1, encoder_sha256=sha256).save(tmp_path / "m" / OUTLIERS)
    width = 17 * findings_model.config.vision_config.hidden_size
    with pytest.raises(ModelError, match=f"{OUTLIERS} was fitted to features of 8 numbers, .* gives {width}"):
        Findings.from_pretrained(tmp_path / "m", warn=False)
