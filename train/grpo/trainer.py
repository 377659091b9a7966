"""trl's GRPOTrainer around a findings model, and its arguments.

The only module here that imports trl (the extra `rl`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from accelerate import PartialState
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from train.common.resume import ExactResume
from train.grpo.rollouts import Groups, Reward, StudyProcessor
from vlm.adapters import check_adapters, lora_config, quiet_peft
from vlm.model import FindingsModel

if TYPE_CHECKING:
    from train.grpo.config import Grpo


class GrpoTrainer(ExactResume, GRPOTrainer):
    """`model.llava` gets LoRA and is trained, its tower already replaced by `processor`."""

    def __init__(
        self,
        config: Grpo,
        model: FindingsModel,
        processor: StudyProcessor,
        rewards: Sequence[Reward],
        weights: Sequence[float],
        rows: list[dict],
        state: PartialState,
    ):
        self.config, self.round_of_steps = config, config.num_iterations
        # Where answers serve several steps, all of a step's are drawn at once; else each accumulated batch draws its
        # own, in the memory that its studies need.
        self.at_once = config.gradient_accumulation_steps if config.num_iterations > 1 else 1
        with quiet_peft():
            super().__init__(
                model=model.llava,
                reward_funcs=list(rewards),
                args=arguments(config, weights, model.meta.max_new_tokens, self.at_once, state),
                train_dataset=Dataset.from_list(rows),
                processing_class=processor,
                peft_config=lora_config(config.lora_rank, config.lora_alpha, projector=config.projector),
            )
        model.llava = self.model
        check_adapters(model.llava)
        processor.tower.to(self.accelerator.device)

    def _get_train_sampler(self, dataset=None) -> Groups:
        # trl's own takes a new order an epoch from a generator whose state no checkpoint holds
        config, parts = self.config, self.config.gradient_accumulation_steps // self.at_once
        return Groups(
            len(self.train_dataset),
            batch=config.batch_size // parts,
            group=config.num_generations,
            rounds=config.max_steps // config.num_iterations * parts,
            repeats=config.num_iterations * self.at_once,
            seed=config.seed,
        )

    def create_model_card(self, *args, **kwargs) -> None:
        """Write no card: a checkpoint is not a model."""


def arguments(
    config: Grpo, weights: Sequence[float], most: int, at_once: int, state: PartialState
) -> GRPOConfig:
    """Return trl's arguments: what decides what is computed is said here, whatever its defaults become."""
    share = state.num_processes * config.gradient_accumulation_steps
    return GRPOConfig(
        output_dir=config.out,
        max_steps=config.max_steps,
        per_device_train_batch_size=config.batch_size * config.num_generations // share,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        steps_per_generation=at_once,
        num_generations=config.num_generations,
        num_iterations=config.num_iterations,
        max_completion_length=most,
        temperature=config.temperature,
        top_p=1.0,
        top_k=0,
        beta=config.beta,
        # The gradient of the KL divergence itself (DeepSeek-V3.2, arXiv 2512.02556).
        use_bias_correction_kl=True,
        epsilon=config.epsilon,
        loss_type=config.loss_type,
        scale_rewards=config.scale_rewards,
        importance_sampling_level="token",
        multi_objective_aggregation="sum_then_normalize",
        reward_weights=list(weights),
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        adam_beta2=config.adam_beta2,
        max_grad_norm=config.max_grad_norm,
        bf16=config.precision == "bf16",
        use_cpu=state.device.type == "cpu",
        gradient_checkpointing=config.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if config.gradient_checkpointing else None,
        logging_steps=1,
        save_steps=config.save_steps,
        save_total_limit=2,
        seed=config.seed,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        report_to=[],
        logging_nan_inf_filter=False,
        ddp_find_unused_parameters=False,
        # Reports do not belong in a log.
        log_completions=False,
    )
