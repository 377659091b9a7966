"""A language model behind an OpenAI-compatible server on this machine: the one place that reports are sent to.

Only a loopback address is spoken to, and the address that was in fact reached is looked at before anything is sent. No
proxy of the environment is used and no redirection is followed. Messages of errors hold no text of a report and nothing
that the server says, for it may repeat one.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import json
import os
import re
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from eval.scores.readers import ScoreError

KEY = "CXR_JUDGE_KEY"
TRIES = 3
# Seconds
TIMEOUT = 300.0
WAIT = 1.0
# Bytes of an answer
LARGEST = 8 * 2**20

Message = dict[str, str]


class Unreadable(Exception):
    """An answer that cannot be used, or none; says of which kind, and nothing of what it holds."""


class Server:
    """An OpenAI-compatible server: `models()`, `ask(...)`.

    A call that fails (no connection, HTTP 429 or 5xx, no answer within `timeout` seconds) is tried TRIES times.
    Raises ScoreError for an address that is not of this machine.
    """

    def __init__(self, url: str, *, timeout: float = TIMEOUT, wait: float = WAIT) -> None:
        self.host, self.port, self.path = _local(url)
        self.url = f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}{self.path}"
        self.timeout, self.wait = timeout, wait
        self._key = os.environ.get(KEY, "").strip()
        if not re.fullmatch(r"[!-~]*", self._key):
            raise ScoreError(
                f"{KEY} holds characters that a key cannot have; set it to the server's key alone"
            )
        self._schemas = True
        self._lock, self._open, self._stopped = threading.Lock(), set[http.client.HTTPConnection](), False

    def models(self) -> list[str]:
        """Return the names of its models, none where it does not list them. Raises ScoreError if it does not answer."""
        try:
            status, body = self._tried("GET", "/models")
        except Unreadable as error:
            raise ScoreError(
                f"{self.url}: {error}; start the server, or give its address by --server"
            ) from None
        if status != 404:
            self._refuse(status)
        try:
            found = json.loads(body)["data"]
            return [str(model["id"]) for model in found]
        except (ValueError, KeyError, TypeError, RecursionError):
            return []

    def ask(self, model: str, messages: Sequence[Message], schema: dict[str, Any] | None = None) -> str:
        """Return the text that the model answers at temperature 0, as JSON of this schema where the server can.

        Raises Unreadable if there is no such text, ScoreError if the server cannot be reached or refuses us.
        """
        request = {"model": model, "messages": list(messages), "temperature": 0, "seed": 0, "stream": False}
        status, body = 0, b""
        for schemas in (True, False) if self._schemas else (False,):
            more = {"response_format": _format(schema)} if schemas else {}
            status, body = self._tried("POST", "/chat/completions", {**request, **more})
            # Some servers know no such field. A report that is too long for the model gets 400 both times.
            if schemas and status == 400:
                continue
            if not schemas and status == 200:
                self._schemas = False
            break
        self._refuse(status)
        if status != 200:
            raise Unreadable(f"HTTP {status}")
        try:
            choice = json.loads(body)["choices"][0]
            text, why = choice["message"]["content"], choice.get("finish_reason")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise Unreadable("not the form of a chat completion") from None
        if why == "length":
            raise Unreadable("cut off at the greatest length")
        if not isinstance(text, str) or not text.strip():
            raise Unreadable("empty")
        return text

    def stop(self) -> None:
        """End the calls that are under way, which an interruption need not wait for; none begins before `go_on`."""
        with self._lock:
            self._stopped = True
            for connection in self._open:
                if connection.sock:
                    with contextlib.suppress(OSError):
                        connection.sock.shutdown(socket.SHUT_RDWR)

    def go_on(self) -> None:
        """Allow calls again."""
        self._stopped = False

    def _refuse(self, status: int) -> None:
        if status in (401, 403):
            raise ScoreError(f"{self.url}: HTTP {status}; the server wants a key: set {KEY}")
        if status == 404:
            raise ScoreError(
                f"{self.url}: HTTP 404; the model is not there, or the address is not an OpenAI-compatible one; it "
                "often ends in /v1"
            )
        if 300 <= status < 400:
            raise ScoreError(f"{self.url}: HTTP {status}; it sends elsewhere, which is not followed")

    def _tried(self, method: str, path: str, content: Any = None) -> tuple[int, bytes]:
        """Return status and body of a call that is tried again where it fails. Raises Unreadable where it fails always,
        ScoreError where nothing listens."""
        why, unreached = "", False
        for attempt in range(TRIES):
            if attempt:
                time.sleep(self.wait * 2 ** (attempt - 1))
            unreached = False
            try:
                status, body = self._call(method, path, content)
            except TimeoutError:
                why = f"no answer within {self.timeout:g} s"
            except (ConnectionRefusedError, socket.gaierror):
                why, unreached = "nothing answers at this address", True
            except (OSError, http.client.HTTPException):
                why = "the connection broke off"
            else:
                if status != 429 and status < 500:
                    return status, body
                why = f"HTTP {status}"
            if self._stopped:
                raise Unreadable("interrupted")
        if unreached and content is not None:
            raise ScoreError(
                f"{self.url}: {why} any more; start the server and run the same command again: answers are kept"
            )
        raise Unreadable(why)

    def _call(self, method: str, path: str, content: Any) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=self.timeout)
        try:
            with self._lock:
                if self._stopped:
                    raise ConnectionAbortedError
                self._open.add(connection)
            connection.sock = socket.create_connection((self.host, self.port), self.timeout)
            if self._stopped:
                raise ConnectionAbortedError
            if not ipaddress.ip_address(connection.sock.getpeername()[0].partition("%")[0]).is_loopback:
                raise ScoreError(_leaves(self.host))
            headers = {"Content-Type": "application/json", "Accept": "application/json"}
            if self._key:
                headers["Authorization"] = f"Bearer {self._key}"
            # ASCII: half a surrogate pair in a report is no reason to fail
            body = None if content is None else json.dumps(content).encode()
            connection.request(method, self.path + path, body, headers)
            response = connection.getresponse()
            found = response.read(LARGEST + 1)
            if len(found) > LARGEST:
                raise http.client.HTTPException
            return response.status, found
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()


def _local(url: str) -> tuple[str, int, str]:
    """Return host, port and path of an address of this machine. Raises ScoreError for any other."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        parts, host, port = None, "", None
    if parts is None or parts.scheme != "http" or not host:
        raise ScoreError(
            "--server is the address of a server on this machine, such as http://127.0.0.1:8000/v1 (http, not https)"
        )
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise ScoreError(_leaves(host))
    return host, port or 80, parts.path.rstrip("/") or "/v1"


def _leaves(host: str) -> str:
    return (
        f"{host[:60]!r} is not an address of this machine: reports of patients would leave this machine; use a tunnel "
        "to 127.0.0.1 (ssh -L 8000:127.0.0.1:8000 HOST)"
    )


def _format(schema: dict[str, Any] | None) -> dict[str, Any]:
    if schema is None:
        return {"type": "json_object"}
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}


def bare(text: str) -> str:
    """Return what a model answers without what it thought before, and without the fence of a block of code."""
    text = text.rpartition("</think>")[2].strip()
    fenced = re.fullmatch(r"```(?:json)?\s*\n(.*?)\n?```", text, re.DOTALL)
    return fenced[1].strip() if fenced else text


def object_in(text: str) -> dict[str, Any]:
    """Return the JSON object that a model answers. Raises Unreadable."""
    try:
        found = json.loads(bare(text))
    except (ValueError, RecursionError):
        raise Unreadable("no JSON") from None
    if not isinstance(found, dict):
        raise Unreadable("JSON, but no object")
    return found
