"""An OpenAI-compatible server on this machine that answers by rule, so that scores are known by hand."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "stub-7b"
# A fault that begins so is an answer that was cut off.
CUT = "cut off: "


def sentences(text: str) -> list[str]:
    return [part.strip() for part in text.split(".") if part.strip()]


def words(text: str) -> list[str]:
    return sorted(re.findall(r"\w+", text.lower()))


def radfact(question: str, wanted: str) -> dict[str, Any]:
    """Phrases are sentences; a phrase is entailed by one of the same words."""
    if wanted == "phrases":
        return {"phrases": sentences(question)}
    asked = json.loads(question)
    return {"evidence": [], "entailed": words(asked["statement"]) in map(words, asked["report"])}


def of_radfact_lite(asked: dict[str, Any]) -> dict[str, Any]:
    """The same rule in the form of radfact-lite."""
    entailed = words(asked["hypothesis"]) in map(words, asked["reference"])
    status = "entailment" if entailed else "not_entailment"
    return {"phrase": asked["hypothesis"], "evidence": [], "status": status}


def crimson(question: str, urgent: str = "pneumothorax") -> dict[str, Any]:
    """Findings are sentences without "no" and "clear"; equal words match. `urgent` weighs 1, all else a half."""
    sides = {}
    for side, title in (("R", "Reference Findings (Ground Truth)"), ("P", "Predicted Findings (Candidate)")):
        text = re.search(re.escape(title) + r":\n(.*?)\n\n", question + "\n\n", re.DOTALL)[1]
        found = [s for s in sentences(text) if not {"no", "clear"} & set(words(s))]
        sides[side] = [
            {
                "id": f"{side}{i}", "finding": finding,
                "clinical_significance": "urgent" if urgent in words(finding) else "actionable_not_urgent",
            }
            for i, finding in enumerate(found, 1)
        ]  # fmt: skip
    pairs = [
        {"ref_id": r["id"], "pred_id": p["id"]}
        for r in sides["R"] for p in sides["P"] if words(r["finding"]) == words(p["finding"])
    ]  # fmt: skip
    matched = {one for pair in pairs for one in pair.values()}
    return {
        "reference_findings": sides["R"],
        "predicted_findings": sides["P"],
        "matched_findings": pairs,
        "errors": {
            "false_findings": [p["id"] for p in sides["P"] if p["id"] not in matched],
            "missing_findings": [r["id"] for r in sides["R"] if r["id"] not in matched],
            "attribute_errors": [],
        },
    }


class Stub:
    """What the server does, and what it was asked. A fault holds for questions that contain its word ("" for all)."""

    def __init__(self) -> None:
        self.url, self.asked, self.headers = "", list[dict[str, Any]](), list[dict[str, str]]()
        self.models = [MODEL]
        self.schemas = True
        # word -> HTTP status, seconds of silence, or a text instead of JSON
        self.faults: dict[str, int | float | str] = {}
        # How many questions are answered before the server goes away.
        self.left = 10**9
        self.lock = threading.Lock()

    def answer(self, request: dict[str, Any]) -> tuple[int, Any]:
        question = request["messages"][-1]["content"]
        wanted = request.get("response_format", {})
        for word, fault in self.faults.items():
            if word in question:
                if isinstance(fault, float):
                    time.sleep(fault)
                elif isinstance(fault, int):
                    return fault, {"error": {"message": f"I cannot do {question}"}}
                else:
                    done = _completion(fault.removeprefix(CUT))
                    if fault.startswith(CUT):
                        done["choices"][0]["finish_reason"] = "length"
                    return 200, done
        if wanted and not self.schemas:
            return 400, {"error": {"message": "response_format"}}
        if "Reference Findings" in question:
            return 200, _completion(json.dumps(crimson(question)))
        if '"hypothesis"' in question:
            return 200, _completion(json.dumps(of_radfact_lite(json.loads(question))))
        kind = "entailed" if '"entailed"' in request["messages"][0]["content"] else "phrases"
        return 200, _completion(json.dumps(radfact(question, kind)))


def _completion(text: str) -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]}


@contextmanager
def serving(stub: Stub) -> Iterator[Stub]:
    """Run the stub's server for the time of the block, on a free port of 127.0.0.1."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None: ...

        def do_GET(self) -> None:
            self._send(200, {"data": [{"id": name} for name in stub.models]})

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with stub.lock:
                stub.left -= 1
                gone = stub.left < 0
                if not gone:
                    stub.asked.append(request)
                    stub.headers.append(dict(self.headers))
            if gone:
                threading.Thread(target=server.shutdown).start()
                server.socket.close()
                return
            self._send(*stub.answer(request))

        def _send(self, status: int, content: Any) -> None:
            body = json.dumps(content).encode()
            try:
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", "http://192.0.2.1/v1/chat/completions")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
            except OSError:
                pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    stub.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()
