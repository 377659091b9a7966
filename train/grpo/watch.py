"""Watching a reinforcement run: a line an interval, metrics.jsonl, rewards on held-out studies, and stop signals.

A reward may be had without looking at the image, and what it does not count is free to drift. So held-out studies are
answered greedily, with their own and with each other's images, and the length of answers is told.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from transformers import TrainerCallback

from train.common.interrupts import Interrupts
from train.grpo.rollouts import REFERENCE, Reward, StudyProcessor, answers

if TYPE_CHECKING:
    from train.grpo.config import Grpo

KEPT = {
    "loss", "grad_norm", "learning_rate", "reward", "reward_std", "frac_reward_zero_std", "kl", "entropy",
    "completions/mean_length", "completions/clipped_ratio", "clip_ratio/region_mean",
}  # fmt: skip


class Watch(TrainerCallback):
    """`watched` has rows of held-out studies, `true`, and `shuffled` with each other's images; it may be empty."""

    def __init__(
        self,
        config: Grpo,
        processor: StudyProcessor,
        rewards: Sequence[Reward],
        weights: Sequence[float],
        watched: dict[str, list[dict]],
        accelerator: Accelerator,
    ):
        self.config, self.processor, self.rewards, self.weights = config, processor, rewards, weights
        self.watched, self.accelerator = watched, accelerator
        self.lines: list[dict] = []  # of the interval
        self.mark = (0, 0.0)  # step and time of its start
        self.interrupts = Interrupts().install()

    def close(self) -> None:
        self.interrupts.restore()

    def say(self, line: str) -> None:
        if self.accelerator.is_main_process:
            print(line, flush=True)

    def record(self, line: dict) -> None:
        if self.accelerator.is_main_process:
            with (Path(self.config.out) / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")

    def on_train_begin(self, args, state, control, **kwargs):
        if state.global_step == 0:
            self.held_out(0)
        self.mark = (state.global_step, time.perf_counter())

    def on_step_end(self, args, state, control, **kwargs):
        asked = self.interrupts.signal
        if self.accelerator.num_processes > 1:  # the signal may reach the processes at different steps
            asked = int(self.accelerator.reduce(torch.tensor(asked, device=self.accelerator.device), "sum"))
        # the answers of a round are not saved, so it is brought to its end
        if (
            asked
            and state.global_step < state.max_steps
            and state.global_step % self.config.num_iterations == 0
        ):
            control.should_save = control.should_training_stop = True

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "reward" not in logs:  # the Trainer's summary at the end
            return
        step, config = state.global_step, self.config
        self.lines.append({k: v for k, v in logs.items() if k in KEPT or k.startswith("rewards/")})
        self.record({"step": step, **self.lines[-1]})
        if step % config.logging_steps == 0 or step == state.max_steps or control.should_training_stop:
            self.tell(step, state.max_steps)
        if config.eval_steps and (step % config.eval_steps == 0 or step == state.max_steps):
            self.held_out(step)
            self.mark = (step, time.perf_counter())  # the pace is that of training

    def tell(self, step: int, steps: int) -> None:
        mean = {k: sum(line[k] for line in self.lines) / len(self.lines) for k in self.lines[0]}
        pace = (time.perf_counter() - self.mark[1]) / max(1, step - self.mark[0])
        each = "".join(f"  {r.__name__} {mean[f'rewards/{r.__name__}/mean']:.3f}" for r in self.rewards)
        kl = f"  KL {mean['kl']:.4f}" if "kl" in mean else ""
        self.say(
            f"step {step}/{steps}  reward {mean['reward']:.3f} (spread {mean['reward_std']:.3f}){each}{kl}  "
            f"{mean['completions/mean_length']:.0f} tokens, {100 * mean['completions/clipped_ratio']:.0f} % cut off  "
            f"{100 * mean['frac_reward_zero_std']:.0f} % of groups equal  lr {mean['learning_rate']:.1e}  "
            f"{pace:.2f} s/step  {_clock(pace * (steps - step))} left"
        )
        self.lines, self.mark = [], (step, time.perf_counter())

    def held_out(self, step: int) -> None:
        """Mean rewards of greedy answers; every process answers its share."""
        if not self.watched:
            return
        started, line, said = time.perf_counter(), {"step": step}, []
        for images, rows in self.watched.items():
            mean = self.means(rows)
            line |= {f"held_out/{images}/{name}": value for name, value in mean.items()}
            each = ", ".join(f"{r.__name__} {mean[r.__name__]:.3f}" for r in self.rewards)
            said.append(f"with {images} images {mean['reward']:.3f} ({each}; {mean['words']:.0f} words)")
        self.record(line)
        self.say(
            f"step {step}  held-out reward {', '.join(said)}  {len(rows)} studies, "
            f"{_clock(time.perf_counter() - started)}"
        )

    def means(self, rows: list[dict]) -> dict[str, float]:
        """`reward`, the weighted sum; each reward by its name; and `words`."""
        mine = rows[self.accelerator.process_index :: self.accelerator.num_processes]
        llava = self.processor.model.llava.eval()
        most = self.processor.model.meta.max_new_tokens
        texts = answers(
            llava, self.processor, mine, most, self.config.eval_batch_size, self.accelerator.device
        )
        llava.train()
        columns = {name: [row[name] for row in mine] for name in (REFERENCE, "study_id")}
        scored = [reward(completions=texts, **columns) for reward in self.rewards] if texts else []
        found = gather_object(list(zip([len(t.split()) for t in texts], *scored, strict=True)))
        words, *each = (sum(column) / len(found) for column in zip(*found, strict=True))
        total = sum(weight * mean for weight, mean in zip(self.weights, each, strict=True))
        names = [reward.__name__ for reward in self.rewards]
        return {"reward": total, **dict(zip(names, each, strict=True)), "words": words}


def _clock(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"
