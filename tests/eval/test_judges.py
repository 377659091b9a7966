"""Judges against a server that answers by rule: scores known by hand, failures, resuming, and where reports may go."""

from __future__ import annotations

import inspect
import json
import socket
import stat
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest

import eval
from cxr.cli.main import main
from eval import ScoreError, judges
from eval.judges import crimson, radfact
from eval.judges.server import Server
from eval.scores.family import Reports
from tests.eval.judging import CUT, MODEL, Stub, serving
from tests.eval.judging import crimson as crimson_rule

# The word that no message may show.
SECRET = "Quillon"
STUDIES = [
    {"study_id": "a", "findings": "Clear lungs. No effusion."},
    {"study_id": "b", "findings": "Small effusion. Edema."},
    {"study_id": "c", "findings": f"Edema seen by {SECRET}."},
]
PREDICTIONS = [
    {"study_id": "a", "findings": "No effusion. Clear lungs."},
    {"study_id": "b", "findings": "Edema. Pneumonia. Fracture."},
    {"study_id": "c", "findings": ""},
]
# Precision and recall of each, by hand; their means, and the harmonic mean of these.
PRECISION, RECALL = [1.0, 1 / 3, np.nan], [1.0, 1 / 2, 0.0]
MEANS = {"radfact/precision": 2 / 3, "radfact/recall": 1 / 2, "radfact/f1": 4 / 7}
# Two reports to split and 2 + 2, 3 + 2 phrases; one report to split, for nothing entails nothing.
CALLS = (2 + 4) + (2 + 5) + 1


@pytest.fixture
def stub(monkeypatch, tmp_path):
    """A server, answers kept in an empty folder, no proxy and no key of whoever runs the tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CXR_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.delenv("CXR_JUDGE_KEY", raising=False)
    with serving(Stub()) as found:
        yield found


def panel(stub: Stub, *names: str, **choices) -> judges.Panel:
    found = judges.panel(names or ["radfact"], server=stub.url, **{"parallel": 1, **choices})
    found.server.wait = 0.0
    return found


def scored(found: judges.Panel, predictions=PREDICTIONS, **more) -> eval.Scores:
    return eval.score(predictions, STUDIES, clinical_models="none", judges=found, **more)


def reports(n: int = 20) -> Reports:
    return Reports([f"Edema {i}." for i in range(n)], [f"Edema {i}. Mass." for i in range(n)], [{}] * n)


def test_radfact_by_hand(stub):
    found = scored(panel(stub))
    assert {key: found[key].value for key in MEANS} == pytest.approx(MEANS)
    assert found["radfact/f1"].headline and found["radfact/precision"].over == "2 of 3"
    assert found["radfact/f1"].over == "" and found["radfact/f1"].n == 3
    assert found["radfact/f1"].signature == (
        f"radfact-f1|prompts:{radfact.VERSION}|model:{MODEL}|temperature:0"
    )
    assert "RadFact F1" in str(found) and "radfact/recall" in json.dumps(found.to_json())
    assert len(stub.asked) == CALLS
    assert all(r["temperature"] == 0 and r["model"] == MODEL and not r["stream"] for r in stub.asked)
    # a baseline is judged only where that is asked for
    assert "radfact/f1" not in found.floors[0].scores
    with_baselines = scored(panel(stub, baselines=True))
    assert "radfact/f1" in with_baselines.floors[0].scores and len(stub.asked) > CALLS


def test_values_of_each_study(stub):
    found = panel(stub)
    found.judge(
        {"": Reports([s["findings"] for s in STUDIES], [p["findings"] for p in PREDICTIONS], STUDIES)}, {}
    )
    np.testing.assert_allclose(found.verdicts["radfact"][""].values_NK.T, [PRECISION, RECALL])


def test_several_at_a_time_give_the_same(stub):
    each = []
    for parallel in (1, 7):
        found = panel(stub, parallel=parallel)
        found.kept_in = Path(f"{found.kept_in}-{parallel}")
        found.judge({"": reports()}, {})
        each.append(found.verdicts["radfact"][""].values_NK)
    np.testing.assert_array_equal(*each)
    np.testing.assert_array_equal(each[0], np.tile([0.5, 1.0], (20, 1)))


def test_answers_are_kept_for_their_user_alone(stub):
    scored(panel(stub))
    stub.asked.clear()
    again = scored(panel(stub))
    assert stub.asked == [] and again["radfact/f1"].value == pytest.approx(MEANS["radfact/f1"])
    files = [path for path in again_files(stub) if path.is_file()]
    assert len(files) == CALLS
    for path in again_files(stub):
        assert stat.S_IMODE(path.stat().st_mode) == (0o600 if path.is_file() else 0o700), path
    # a damaged one is asked for again; another model has answers of its own
    files[0].write_text("{")
    scored(panel(stub))
    assert len(stub.asked) == 1
    stub.models = ["another"]
    scored(panel(stub))
    assert len(stub.asked) == 1 + CALLS


def again_files(stub: Stub) -> list[Path]:
    below = judges.panel(["radfact"], server=stub.url).kept_in
    return [below, *below.rglob("*")]


def test_an_interrupted_run_resumes(stub):
    stub.left = 7
    with pytest.raises(ScoreError, match="run the same command again: answers are kept"):
        scored(panel(stub))
    with serving(Stub()) as second:
        found = scored(panel(second))
        assert len(second.asked) == CALLS - 7
    assert found["radfact/f1"].value == pytest.approx(MEANS["radfact/f1"])


def test_ctrl_c_does_not_wait_for_an_answer(stub):
    stub.faults = {"Edema 3": 20.0}

    def interrupt(what, done, of):
        if done == 2:
            raise KeyboardInterrupt

    found, began = panel(stub, parallel=3), time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        found.judge({"": reports()}, {}, interrupt)
    assert time.monotonic() - began < 10
    stub.faults = {}
    found.judge({"": reports()}, {})
    assert found.verdicts["radfact"][""].judged_N.all()


@pytest.mark.parametrize(
    ("fault", "tries"),
    [
        (500, 3),
        (429, 3),
        (400, 2),
        ("no JSON, Edema", 1),
        (f'{CUT}{{"phrases": ["x"]}}', 1),
        ("{}", 1),
        ('{"phrases": [1]}', 1),
        ("[]", 1),
    ],
)
def test_a_study_without_a_readable_answer_is_left_out(stub, capsys, fault, tries):
    stub.faults = {SECRET: fault}
    found = scored(panel(stub))
    assert found["radfact/f1"].over == "2 of 3" and found["radfact/recall"].over == "2 of 3"
    assert found["radfact/recall"].value == pytest.approx(3 / 4)
    assert found.problems["study without a judge's answer"] == ["c"]
    assert sum(SECRET in r["messages"][-1]["content"] for r in stub.asked) == tries
    assert "2 of 3" in str(found) and SECRET not in str(found) + "".join(capsys.readouterr())
    # what cannot be read is not kept
    stub.faults = {}
    assert scored(panel(stub))["radfact/f1"].over == ""


def test_an_answer_that_does_not_come_costs_its_study(stub):
    stub.faults = {SECRET: 1.0}
    found = scored(panel(stub, timeout=0.15))
    assert found["radfact/f1"].over == "2 of 3"


def test_a_model_that_never_answers_is_given_up(stub, caplog, capsys):
    stub.faults = {"": 503}
    found = panel(stub, "radfact")
    found.judge({"": reports(50)}, {})
    (lack,) = found.not_computed
    assert lack.name == "RadFact" and "on the first 5 studies (HTTP 503)" in lack.reason
    assert len(stub.asked) <= 6 * 3
    stub.faults = {}
    found.judge({"": reports(2)}, {})
    assert found.not_computed == [] and found.verdicts["radfact"]


def test_what_is_compared_is_judged_on_the_same_studies(stub):
    other = [{**PREDICTIONS[0], "findings": f"Clear lungs. {SECRET}."}, PREDICTIONS[0] | {"study_id": "b"}]
    stub.faults = {f"Clear lungs. {SECRET}": "nothing"}
    found = scored(panel(stub), compare={"other": other})
    # a is left out of both, b and c are not
    assert found["radfact/recall"].value == pytest.approx(1 / 4) and found["radfact/f1"].over == "2 of 3"
    (compared,) = found.comparisons
    assert compared.scores["radfact/recall"].value == 0
    assert {d.name: d for d in compared.differences}["radfact/f1"].value == found["radfact/f1"].value


def test_a_server_without_schemas(stub):
    stub.schemas = False
    assert scored(panel(stub))["radfact/f1"].value == pytest.approx(MEANS["radfact/f1"])
    # found out by the first question
    assert len(stub.asked) == CALLS + 1


@pytest.mark.parametrize(
    "answer", ['<think>Is it {"phrases"}?</think>\n{"phrases": ["x"]}', '```json\n{"phrases": ["x"]}\n```']
)
def test_thoughts_and_fences_around_an_answer(answer):
    assert radfact.phrases_in(answer) == ["x"]


# --- where reports may go ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "http://192.0.2.1:8000/v1", "http://example.org/v1", "http://127.0.0.1@example.org/v1",
        "http://127.0.0.1.example.org/v1", "http://0.0.0.0:8000/v1", "http://[2001:db8::1]/v1", "http://10.0.0.5/v1",
    ],
)  # fmt: skip
def test_another_machine_is_refused(url, monkeypatch):
    monkeypatch.setattr(socket, "create_connection", lambda *a, **k: pytest.fail("it was spoken to"))
    with pytest.raises(ScoreError) as refused:
        judges.panel(["radfact"], server=url)
    assert "reports of patients would leave this machine; use a tunnel to 127.0.0.1" in str(refused.value)
    assert "\n" not in str(refused.value) and "@" not in str(refused.value)


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:8000", "https://127.0.0.1/v1", "file:///etc/passwd", "http://[", "http://"]
)
def test_what_is_no_address_is_refused(url):
    with pytest.raises(ScoreError, match=r"such as http://127\.0\.0\.1:8000/v1|asked; give the address"):
        judges.panel(["radfact"], server=url)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8000", "http://127.9.9.9:1/v1/", "http://[::1]:8000/v1", "http://localhost/v1"]
)
def test_this_machine_is_not_refused(url):
    assert Server(url).path == "/v1"


def test_a_name_that_leads_elsewhere_gets_no_report(stub, monkeypatch):
    server = Server(stub.url)
    monkeypatch.setattr(socket.socket, "getpeername", lambda self: ("192.0.2.1", 80))
    with pytest.raises(ScoreError, match="would leave this machine"):
        server.ask(MODEL, [{"role": "user", "content": SECRET}])
    assert stub.asked == []


def test_neither_proxy_nor_redirection_is_followed(stub, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://192.0.2.1:3128")
    found = panel(stub)
    stub.faults = {"": 302}
    with pytest.raises(ScoreError, match="HTTP 302; it sends elsewhere, which is not followed"):
        scored(found)


def test_a_key_is_sent_only_where_it_is_set(stub, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-other")
    scored(panel(stub))
    assert not any("Authorization" in headers for headers in stub.headers)
    monkeypatch.setenv("CXR_JUDGE_KEY", "local-key")
    stub.models = ["another"]
    scored(panel(stub))
    assert stub.headers[-1]["Authorization"] == "Bearer local-key"
    stub.faults = {"": 401}
    stub.models = ["a third"]
    with pytest.raises(ScoreError, match="wants a key: set CXR_JUDGE_KEY") as refused:
        scored(panel(stub))
    assert "local-key" not in str(refused.value)
    monkeypatch.setenv("CXR_JUDGE_KEY", "two\r\nlines")
    with pytest.raises(ScoreError, match="characters that a key cannot have"):
        panel(stub)


def test_models_are_chosen_as_the_server_names_them(stub):
    assert panel(stub).model == MODEL
    with pytest.raises(ScoreError, match=f"has no model 'other'; there are {MODEL}"):
        panel(stub, model="other")
    stub.models = ["x", "y"]
    with pytest.raises(ScoreError, match="wants --judge-model; there are x, y"):
        panel(stub)
    assert panel(stub, model="y").model == "y"
    with pytest.raises(ScoreError, match="no judge 'gren'; there are radfact, crimson"):
        panel(stub, "gren")
    with pytest.raises(ScoreError, match="--server is for radfact, crimson; none is asked"):
        panel(stub, "green")


def test_the_command(stub, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, rows in (("p", PREDICTIONS), ("r", STUDIES)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command = ["score", "p.jsonl", "r.jsonl", "--clinical", "none"]
    asking = [*command, "--judges", "radfact", "--server", stub.url, "--judge-model", MODEL]
    assert main([*asking, "--out", "s.json", "--html", "s.html"]) == 0
    shown = capsys.readouterr()
    assert "RadFact F1" in shown.out and SECRET not in shown.out + shown.err
    assert (
        SECRET not in (tmp_path / "s.json").read_text() and "RadFact F1" in (tmp_path / "s.html").read_text()
    )
    for more, message in (
        (["--judges", "radfact", "--server", "http://example.org/v1"], "would leave this machine"),
        (["--judges", "radfact", "--server", "http://127.0.0.1:9/v1"], "nothing answers at this address"),
        (["--judges", "radfact"], "give the address of its server"),
        (["--server", stub.url], "name them by --judges"),
    ):
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        assert main([*command, *more]) == 2
        error = capsys.readouterr().err
        assert message in error and len(error.strip().splitlines()) == 1


def test_a_judge_is_no_reward():
    with pytest.raises(ScoreError, match="`cxr score --judges radfact` asks"):
        eval.metric("radfact/f1")


# --- CRIMSON ----------------------------------------------------------------------------------------------------------


class Crimson:
    """What the package `crimson-score` offers, as far as it is used: its parameters, its client, its answer."""

    def __init__(self, api="hf", model_name=None, device=None):
        raise AssertionError("it would make a client of OpenAI's or fetch a model")

    def evaluate(self, reference_findings, predicted_findings, patient_context=None, include_guidelines=True):
        prompt = "".join(f"{name}: {value}\n" for name, value in (patient_context or {}).items())
        prompt += "Guidelines\n" if include_guidelines else ""
        prompt += f"Reference Findings (Ground Truth):\n{reference_findings}\n\n"
        prompt += f"Predicted Findings (Candidate):\n{predicted_findings}\n\n"
        asked = [{"role": "system", "content": "Judge."}, {"role": "user", "content": prompt}]
        answer = self.client.chat.completions.create(model=self.model_name, messages=asked, temperature=0.0)
        text = answer.choices[0].message.content
        try:
            said = json.loads(text)
        except ValueError:
            # as the package does
            raise ValueError(f"Failed to parse model response as JSON: {text}") from None
        count = len(said.get("reference_findings", []))
        right = len(said.get("matched_findings", []))
        score = (right - len(said["errors"]["false_findings"])) / count if count else 1.0
        return {"raw_evaluation": said, "crimson_score": score}


@pytest.fixture
def package(monkeypatch):
    monkeypatch.setitem(sys.modules, "CRIMSON", types.SimpleNamespace(CRIMSONScore=Crimson))


def test_the_stand_in_takes_what_the_package_takes():
    real = pytest.importorskip("CRIMSON", reason="crimson-score is not installed").CRIMSONScore
    for name in ("evaluate", "__init__"):
        assert inspect.signature(getattr(real, name)) == inspect.signature(getattr(Crimson, name)), name


def test_crimson_through_the_package(stub, package):
    studies = [{**STUDIES[0], "age": 82, "indication": "Dyspnea"}, *STUDIES[1:]]
    found = eval.score(PREDICTIONS, studies, clinical_models="none", judges=panel(stub, "crimson"))
    # nothing abnormal: 1; one of two found, two invented: (1 - 2) / 2; nothing found of one: 0
    assert found["crimson"].value == pytest.approx((1 - 1 / 2 + 0) / 3)
    assert len(stub.asked) == 3 and "|context:age+indication|" in found["crimson"].signature
    assert "Age: 82\nIndication: Dyspnea\nGuidelines\n" in stub.asked[0]["messages"][1]["content"]
    assert "|guidelines:yes|" in found["crimson"].signature
    stub.models = ["x/medgemma-4b-it-crimson"]
    found = scored(panel(stub, "crimson"))
    assert "Guidelines" not in stub.asked[-1]["messages"][1]["content"]
    assert "|guidelines:no|context:none|" in found["crimson"].signature


@pytest.mark.parametrize(
    "answer", ["Sorry.", "{}", "[]", '{"errors": []}', json.dumps({"errors": {}, "matched_findings": 5})]
)
def test_an_answer_of_another_form_is_no_perfect_report(stub, package, capsys, answer):
    stub.faults = {SECRET: answer + ("" if answer.startswith(("{", "[")) else SECRET)}
    found = scored(panel(stub, "crimson"))
    assert found["crimson"].over == "2 of 3" and found["crimson"].value == pytest.approx(1 / 4)
    assert SECRET not in str(found) + "".join(capsys.readouterr())


def test_crimson_without_its_package(stub, monkeypatch):
    monkeypatch.setitem(sys.modules, "CRIMSON", None)
    found = scored(panel(stub, "crimson", "radfact"))
    (lack,) = [m for m in found.not_computed if m.name == "CRIMSON"]
    assert lack.command == crimson.INSTALL and "crimson" not in found.scores and "radfact/f1" in found.scores
    monkeypatch.setitem(
        sys.modules, "CRIMSON", types.SimpleNamespace(CRIMSONScore=type("C", (), {"evaluate": len}))
    )
    found = panel(stub, "crimson")
    found.judge({"": reports(2)}, {})
    assert "another version than we know" in found.not_computed[0].reason


def test_crimson_by_hand_with_the_package(stub):
    """The stub's answers, weighed by the package: urgent 1, else a half."""
    pytest.importorskip("CRIMSON", reason="crimson-score is not installed")
    texts = [
        ("Pneumothorax. Edema.", "Edema.", 0.5 / 1.5),
        ("Clear lungs.", "No effusion.", 1.0),
        # 1 invented: -(1 - 0.5) / (1 + (1 - 0.5))
        ("Edema.", "Edema. Pneumothorax.", -0.5 / 1.5),
        ("Edema. Effusion.", "Effusion. Edema.", 1.0),
    ]
    references, predictions, values = zip(*texts, strict=True)
    found = panel(stub, "crimson")
    found.judge({"": Reports(references, predictions, [{"age": 82}, {}, {"indication": "Cough"}, {}])}, {})
    np.testing.assert_allclose(found.verdicts["crimson"][""].values_NK[:, 0], values, atol=1e-4)
    assert "Age: 82" in stub.asked[0]["messages"][1]["content"]
    assert set(crimson_rule(stub.asked[0]["messages"][1]["content"])["errors"]["missing_findings"]) == {"R1"}


def test_radfact_as_another_tool_has_it(stub):
    """radfact-lite, on the same server: with phrases on both sides the definitions are one."""
    lite = pytest.importorskip("radfact_lite", reason="radfact-lite is not installed")
    pairs = {str(i): (f"Edema. Mass {i}. Clear.", f"Clear. Mass. Edema {i}. Effusion.") for i in range(4)}
    pairs["4"] = ("Edema. Clear.", "Clear. Edema.")
    mine = panel(stub)
    mine.judge({"": Reports([r for r, _ in pairs.values()], [p for _, p in pairs.values()], [{}] * 5)}, {})
    phrases = {
        key: tuple([s.strip() for s in t.split(".") if s.strip()] for t in pair)
        for key, pair in pairs.items()
    }
    config = lite.ModelConfig(model=MODEL, provider="ollama", base_url=stub.url)
    pipeline = lite.RadFactLitePipeline(lite.PipelineModels(config, config))
    _, each = pipeline.compute_radfact(
        {key: p for key, (_, p) in phrases.items()},
        {key: r for key, (r, _) in phrases.items()},
        is_narrative_text=False,
    )
    theirs = [(one.logical_precision, one.logical_recall) for one in each]
    np.testing.assert_allclose(mine.verdicts["radfact"][""].values_NK, theirs)
    assert len(theirs) == 5 and theirs[-1] == (1.0, 1.0) and 0 < theirs[0][0] < 1
