"""A training that is killed in the middle of something, as a power cut would do it."""

from __future__ import annotations

import multiprocessing
import os
import signal


def killed_run(argv: list[str], where: str, after: int) -> int:
    """Run train.pretrain in a process of its own and kill -9 it at the `after`-th `update` of the teacher, or while it
    writes the `after`-th `file` of a checkpoint. -> its exit code: -9, or that of a run that ended before."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["train.pretrain.loop"])
    process = context.Process(target=_run, args=(argv, where, after))
    process.start()
    process.join(120)
    if process.is_alive():
        process.kill()
        raise TimeoutError("the run hangs")
    return process.exitcode


def _run(argv: list[str], where: str, after: int) -> None:
    from train.common import checkpoints
    from train.pretrain import loop
    from train.pretrain.__main__ import main

    count = 0

    def dying(function, module, name):
        def counted(*args, **kwargs):
            nonlocal count
            count += 1
            if count == after:
                if where == "file":  # half of it
                    args[1].write_bytes(b"\0" * 100)
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        setattr(module, name, counted)

    if where == "file":
        dying(checkpoints.save_file, checkpoints, "save_file")
    else:
        dying(loop.update_teacher, loop, "update_teacher")
    raise SystemExit(main(argv))
