"""Watching a reinforcement run: a line an interval, metrics.jsonl, and rewards on held-out studies.

A reward can be earned without using the image, and what it does not count is free to drift. So held-out studies are
answered greedily, with their own and with each other's images, and the length of answers is told.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from accelerate.utils import gather_object
from transformers import TrainerCallback

from train.common.resume import Pace, clock
from train.grpo.rollouts import REFERENCE, Reward, StudyProcessor, answers

if TYPE_CHECKING:
    from train.grpo.trainer import GrpoTrainer

KEPT = {
    "loss", "grad_norm", "learning_rate", "reward", "reward_std", "frac_reward_zero_std", "kl", "entropy",
    "completions/mean_length", "completions/clipped_ratio", "clip_ratio/region_mean",
}  # fmt: skip


class Watch(TrainerCallback):
    """`watched` has rows of held-out studies, `true`, and `shuffled` with each other's images; it may be empty."""

    def __init__(
        self,
        trainer: GrpoTrainer,
        processor: StudyProcessor,
        rewards: Sequence[Reward],
        weights: Sequence[float],
        watched: dict[str, list[dict]],
    ):
        self.trainer, self.config, self.accelerator = trainer, trainer.config, trainer.accelerator
        self.processor, self.rewards, self.weights, self.watched = processor, rewards, weights, watched
        # Of the interval.
        self.lines: list[dict] = []
        self.pace = Pace()

    def on_train_begin(self, args, state, control, **kwargs):
        """Judge the held-out studies before the first step; after a resume they were judged before."""
        if state.global_step == 0:
            self.held_out(0)
        self.pace.mark(state.global_step)

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Record the step; at the end of an interval, print its means and judge the held-out studies."""
        # The Trainer's summary at the end has none.
        if "reward" not in logs:
            return
        step, config = state.global_step, self.config
        self.lines.append({k: v for k, v in logs.items() if k in KEPT or k.startswith("rewards/")})
        self.trainer.record({"step": step, **self.lines[-1]})
        if step % config.logging_steps == 0 or step == state.max_steps or control.should_training_stop:
            self.tell(step, state.max_steps)
        if config.eval_steps and (step % config.eval_steps == 0 or step == state.max_steps):
            self.held_out(step)
            self.pace.mark(step)

    def tell(self, step: int, steps: int) -> None:
        """Print the means of the steps since the last call, and begin a new interval."""
        mean = {k: sum(line[k] for line in self.lines) / len(self.lines) for k in self.lines[0]}
        each = "".join(f"  {r.__name__} {mean[f'rewards/{r.__name__}/mean']:.3f}" for r in self.rewards)
        kl = f"  KL {mean['kl']:.4f}" if "kl" in mean else ""
        self.trainer.say(
            f"step {step}/{steps}  reward {mean['reward']:.3f} (spread {mean['reward_std']:.3f}){each}{kl}  "
            f"{mean['completions/mean_length']:.0f} tokens, {100 * mean['completions/clipped_ratio']:.0f} % cut off  "
            f"{100 * mean['frac_reward_zero_std']:.0f} % of groups equal  lr {mean['learning_rate']:.1e}  "
            f"{self.pace.words(step, steps)}"
        )
        self.lines = []
        self.pace.mark(step)

    def held_out(self, step: int) -> None:
        """Judge greedy answers on held-out studies by their mean rewards; every process answers its share."""
        if not self.watched:
            return
        started, line, said = time.perf_counter(), {"step": step}, []
        for images, rows in self.watched.items():
            mean = self.means(rows)
            line |= {f"held_out/{images}/{name}": value for name, value in mean.items()}
            each = ", ".join(f"{r.__name__} {mean[r.__name__]:.3f}" for r in self.rewards)
            said.append(f"with {images} images {mean['reward']:.3f} ({each}; {mean['words']:.0f} words)")
        self.trainer.record(line)
        self.trainer.say(
            f"step {step}  held-out reward {', '.join(said)}  {len(rows)} studies, "
            f"{clock(time.perf_counter() - started)}"
        )

    def means(self, rows: list[dict]) -> dict[str, float]:
        """Return `reward`, the weighted sum; each reward by its name; and `words`."""
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
