"""The process that `isolated.py` starts, as a file: it decodes what it is sent until its socket ends, within limits.

For gdcm it imports neither numpy nor pydicom: it starts in a quarter of the time, and starts again after a breakdown.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import sys
import tempfile
from typing import Any

if __name__ == "__main__":
    # what the parent sees, and neither the current folder nor the user's settings of Python
    sys.path[:] = sys.argv[1:]

from encoder.wire import receive, receive_json, send
from encoder.workers import end_with

# Bytes of a library's words that are sent back.
WORDS = 10_000


def serve() -> None:
    """Answer the socket that is standard input."""
    # nothing that a library reads or prints may come between
    to = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    # a film that breaks the decoder leaves no image of the memory on the disk
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
    try:
        end_with(int(receive_json(to)[0]["parent"]))
        with tempfile.TemporaryFile() as words:
            # a library in C speaks to its process's standard error
            os.dup2(words.fileno(), 2)
            send(to, {"ready": True})
            while True:
                question, length = receive_json(to)
                _answer(to, question, receive(to, length), words.fileno())
    except (EOFError, OSError):
        # the parent has ended, or is done
        os._exit(0)


def _answer(to: socket.socket, question: dict[str, Any], frame: bytes, words: int) -> None:
    os.ftruncate(words, 0)
    os.lseek(words, 0, os.SEEK_SET)
    # The kernel ends this process: a decoder that hangs holds the interpreter, which could not do it.
    signal.setitimer(signal.ITIMER_PROF, question["seconds"])
    _limit_memory(question["memory"])
    try:
        answer, data = decode(question, frame)
    # The libraries raise anything. A codec's message speaks of the codec and of numbers only.
    except Exception as error:
        answer, data = {"error": type(error).__name__, "message": str(error)[:WORDS]}, b""
    signal.setitimer(signal.ITIMER_PROF, 0)
    answer["said"] = os.pread(words, WORDS, 0).decode("latin-1")
    send(to, answer, data)


def decode(question: dict[str, Any], frame: bytes) -> tuple[dict[str, Any], bytes]:
    """Return ({"shape", "dtype"} of the samples, the samples), as the stream has them. Raises what the
    libraries raise."""
    if question["plugin"] == "gdcm":
        return _by_gdcm(question, frame)
    from encoder.radiograph.codestream import Stream
    from encoder.radiograph.decode import by_pydicom

    samples = by_pydicom(frame, question["syntax"], question["plugin"], Stream(*question["stream"]))
    return {"shape": samples.shape, "dtype": samples.dtype.name}, samples.tobytes()


def _by_gdcm(question: dict[str, Any], frame: bytes) -> tuple[dict[str, Any], bytes]:
    import gdcm

    _, rows, columns, precision, components, _ = question["stream"]
    bits = 8 if precision <= 8 else 16
    pieces = gdcm.SequenceOfFragments.New()
    piece = gdcm.Fragment()
    piece.SetByteStringValue(frame)
    pieces.AddFragment(piece)
    pixels = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    pixels.SetValue(pieces.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((columns, rows, 1))
    image.SetDataElement(pixels)
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(question["syntax"])))
    grey = gdcm.PhotometricInterpretation.MONOCHROME2
    kind = grey if components == 1 else gdcm.PhotometricInterpretation.RGB
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(kind))
    if components > 1:
        image.SetPlanarConfiguration(0)
    # unsigned, whatever they mean
    image.SetPixelFormat(gdcm.PixelFormat(components, bits, precision, precision - 1, 0))
    # gdcm gives bytes as a str
    data = image.GetBuffer().encode("utf-8", "surrogateescape")
    shape = (rows, columns) if components == 1 else (rows, columns, components)
    return {"shape": shape, "dtype": f"uint{bits}"}, data


def _limit_memory(more: int) -> None:
    """Let this process take so many bytes more than it has. Does nothing where the system does not say how many."""
    try:
        with open("/proc/self/statm", "rb") as file:
            held = int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    soft = held + more
    resource.setrlimit(
        resource.RLIMIT_AS, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard)
    )


if __name__ == "__main__":
    serve()
