"""Watching a fine-tuning: label F1 of generated findings with true and with shuffled images; the best weights are kept.

The loss alone does not tell: a model may write well and look at nothing.
"""

from __future__ import annotations

import json
import shutil
import time
from functools import partial
from pathlib import Path

import torch
from accelerate.utils import gather_object

from encoder.files import replace_folder, write_json
from eval.scores.labels import label_report
from train.common.batches import answer_loss
from train.common.processes import inside, split_again
from train.common.resume import WEIGHTS, trained_weights
from train.common.trainer import AnswerTrainer
from vlm.decoding import Decoding, generate_ids
from vlm.prompts import answer_for, derangement

# Folder of the weights at the end of a run that judged none.
LAST = "last"


class FindingsTrainer(AnswerTrainer):
    """`model` is the FindingsModel whose `llava` is trained, its tower replaced by what gives standardised
    features; `config` the Finetune."""

    def __init__(self, model, config, **kwargs):
        super().__init__(model=model.llava, **kwargs)
        self.findings, self.config = model, config

    @torch.no_grad()
    def evaluate(self, *_, **__):
        """Judge the model on the validation studies, with their images and with shuffled ones.

        Prints and records the loss in nats a token and the label F1 of generated findings, and keeps the
        weights if they are the best so far. Collective: every process must call this.

        Returns:
            step, eval_loss, eval_f1, eval_f1_shuffled, and eval_labels: how many labels the F1 averages.
        """
        started = time.perf_counter()
        self.flush_losses()
        val, accelerator, config = self.eval_dataset, self.accelerator, self.config
        llava = accelerator.unwrap_model(self.model).eval()
        world, split = accelerator.num_processes, self.split
        mine = list(range(len(val)))[accelerator.process_index :: world]
        mine.sort(key=lambda i: len(val.prompts[i]))  # equal prompts together: little padding
        other = derangement(len(val), config.seed)
        losses, texts = [], {"true": {}, "shuffled": {}}
        for start in range(0, -(-len(val) // world), config.eval_batch_size):  # as often in every process
            part = mine[start : start + config.eval_batch_size]
            if not part and not split:
                continue
            counts, part = bool(part), part or [0]
            batch = self._prepare_inputs(self.data_collator([val[i] for i in part]))
            labels = batch.pop("labels")
            with self.compute_loss_context_manager():
                n = int((labels != -100).sum())
                loss = float(answer_loss(llava(**batch), labels))
                losses += [(loss * n, n)] if counts else []
                for images, of in (("true", lambda i: i), ("shuffled", other.__getitem__)):
                    prompts, shown = zip(*(val.exchanged(i, of(i)) for i in part), strict=True)
                    write = partial(
                        generate_ids, llava, self.findings, list(prompts), val.images_of(shown).to(accelerator.device),
                        Decoding(config.max_new_tokens, stop_repeats=False), synced=split,
                    )  # fmt: skip
                    written = inside(llava, write)
                    texts[images] |= {
                        i: self.findings.tokenizer.decode(ids, skip_special_tokens=True).strip()
                        for i, ids in zip(part if counts else (), written, strict=counts)
                    }
        split_again(llava)
        llava.train()
        gathered = gather_object([(losses, texts)])
        loss = sum(x for part, _ in gathered for x, _ in part) / sum(
            n for part, _ in gathered for _, n in part
        )
        truth = [s.labels or label_report(answer_for(s, val.style)) for s in val.studies]
        f1 = {}
        for images in ("true", "shuffled"):
            found = {i: t for _, part in gathered for i, t in part[images].items()}
            f1[images], counted = macro_f1(truth, [label_report(found[i]) for i in range(len(val))])
        line = {
            "step": self.state.global_step, "eval_loss": loss, "eval_f1": f1["true"],
            "eval_f1_shuffled": f1["shuffled"], "eval_labels": counted,
        }  # fmt: skip
        self.record(line)
        self.say(
            f"step {line['step']}  validation loss {loss:.4f}  label F1 {f1['true']:.3f}, with shuffled images "
            f"{f1['shuffled']:.3f}  ({len(val)} studies, {counted} labels, {time.perf_counter() - started:.0f} s)"
        )
        self.keep_best(line)
        self.callback_handler.on_evaluate(self.args, self.state, self.control, line)
        return line

    def keep_best(self, line: dict) -> None:
        """Keep the weights as they are if no evaluation before was better. Collective."""
        best = Path(self.args.output_dir) / "best"
        weights = self.whole()
        if not self.args.should_save:
            return
        if best.is_dir():
            before = json.loads((best / "metrics.json").read_text())
            # After a resume the same evaluations come again; a best from later than this step does not count yet
            if before["step"] < line["step"] and quality(before) >= quality(line):
                return
        part = best.with_name(".best")
        shutil.rmtree(part, ignore_errors=True)
        self._write(weights, part / WEIGHTS)
        write_json(part / "metrics.json", line)
        replace_folder(part, best)

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """Create AdamW with rates of their own for projector and encoder, after FSDP2 has split the
        weights."""
        if self.optimizer is None:
            config, weights = self.config, trained_weights(self.model)
            rates = {"projector": config.projector_lr_mult, "vision_tower": config.encoder_lr_mult, "": 1.0}
            part_of = {name: next(part for part in rates if part in name) for name in weights}
            groups = [
                {
                    "params": [weights[n] for n, of in part_of.items() if of == part],
                    "lr": config.learning_rate * rate,
                }
                for part, rate in reversed(rates.items())
            ]
            self.optimizer = torch.optim.AdamW(
                [group for group in groups if group["params"]],
                betas=(0.9, config.adam_beta2), eps=1e-8, weight_decay=config.weight_decay,
            )  # fmt: skip
        return self.optimizer

    def best_weights(self) -> Path:
        """Return the file of the best weights, or of the last where none were judged. Collective."""
        best = Path(self.args.output_dir) / "best"
        if not best.is_dir():
            last = best.with_name(LAST)
            self.save_model(str(last))
            return last / WEIGHTS
        line = json.loads((best / "metrics.json").read_text())
        self.say(f"best: step {line['step']}, label F1 {line['eval_f1']:.3f}")
        return best / WEIGHTS


def quality(line: dict) -> tuple[float, float]:
    """Return what makes an evaluation better than another: its F1, and of equal ones the lower loss."""
    return line["eval_f1"], -line["eval_loss"]


def macro_f1(truth: list[dict[str, int]], found: list[dict[str, int]], least: int = 10) -> tuple[float, int]:
    """Return the macro F1 over the labels that at least `least` of the studies have (if there is none: one),
    uncertain and unmentioned counted as negative; and how many labels those are."""
    names = sorted({name for labels in truth for name in labels})
    positives = {name: sum(labels.get(name) == 1 for labels in truth) for name in names}
    counted = [n for n in names if positives[n] >= least] or [n for n in names if positives[n]]
    scores = []
    for name in counted:
        claimed = sum(labels.get(name) == 1 for labels in found)
        hits = sum(t.get(name) == 1 == f.get(name) for t, f in zip(truth, found, strict=True))
        scores.append(2 * hits / (claimed + positives[name]))
    return (sum(scores) / len(scores) if scores else 0.0), len(scores)
