"""One stage of training, by trl's trainers: with what they leave to whoever uses them.

What goes in are token ids and labels of ours, so nothing is dropped unseen. A run that ends in the
middle (Ctrl-C, a crash, a loss that is no number) leaves a checkpoint, and going on from it gives
the same model to the bit.
"""

import tapestry.offline  # noqa: F401 - before trl is imported

# isort: split
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets.utils.logging import disable_progress_bar
from transformers import PrinterCallback
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, SFTConfig, SFTTrainer

from tapestry.errors import ConfigError, TapestryError
from tapestry_finetune.adapting import Adapted, embeddings_of, quiet
from tapestry_finetune.examples import Examples
from tapestry_finetune.keeping import DivergedError, Keeper, Watch, newest_whole

disable_progress_bar()

STATE_FILE = "trained.safetensors"
_EMBEDDING_SHARE = 0.25
"""Of the learning rate, for the rows of embeddings: between a half and a tenth is usual."""


class StoppedError(TapestryError):
    """Somebody stopped the run; what was learnt is kept."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageSettings:
    """How one stage is trained; everything decided."""

    learning_rate: float
    epochs: float
    steps: int
    """0: by `epochs`."""
    batch: int
    micro_batch: int
    sequence_tokens: int
    seed: int
    device: str
    in_bfloat16: bool = False
    """Whether matrix products are, by autocast; parameters and optimizer stay float32."""
    activation_checkpointing: bool = False
    beta: float = 0.1
    sft_weight: float = 0.2


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """What a stage came to."""

    steps: int
    tokens: int
    seconds: float
    micro_batch: int


def train_stage(
    adapted: Adapted,
    tokenizer: Any,  # noqa: ANN401 - transformers is not typed
    examples: Examples,
    settings: StageSettings,
    *,
    folder: Path,
    watch: Watch,
) -> Trained:
    """Train one stage, going on from where an earlier call was stopped.

    Args:
        adapted: The model as the stage before left it.
        tokenizer: With the consensus' template.
        examples: What is learnt.
        settings: How.
        folder: For checkpoints and metrics of this stage.
        watch: Who looks on.

    Raises:
        StoppedError: `watch.is_stopped` said so; a checkpoint is kept.
        ConfigError: The loss is no number any more, or memory does not suffice for one sequence.
    """
    folder.mkdir(parents=True, exist_ok=True)
    fewest = 2 if examples.kind == "thumbs" else 1  # KTO compares with a neighbour
    micro = max(fewest, min(settings.micro_batch, settings.batch))
    start = folder / "start.safetensors"
    if not start.exists():
        adapted.save_state(start)
    while True:
        try:
            return _train(
                adapted, tokenizer, examples, settings, micro=micro, folder=folder, watch=watch
            )
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
            if micro == fewest:
                raise ConfigError(
                    "memory does not suffice for one sequence: lower training.sequence_tokens or "
                    "training.rank, set training.activation_checkpointing = true, or take "
                    'method = "lora"'
                ) from error
            micro = max(fewest, micro // 2)
            adapted.load_state(start)


def _train(
    adapted: Adapted,
    tokenizer: Any,  # noqa: ANN401
    examples: Examples,
    settings: StageSettings,
    *,
    micro: int,
    folder: Path,
    watch: Watch,
) -> Trained:
    keeper = Keeper(folder, watch)
    with quiet():
        trainer = _trainer(adapted, tokenizer, examples, settings, micro=micro, keeper=keeper)
        trainer.remove_callback(PrinterCallback)
        found = newest_whole(folder)
        try:
            trainer.train(resume_from_checkpoint=str(found) if found else None)
        except DivergedError:
            if trainer.state.global_step:
                trainer._save_checkpoint(trainer.model, trial=None)  # noqa: SLF001 - the last good one
                keeper.on_save(trainer.args, trainer.state, None)
            raise
        finally:
            if getattr(adapted.module, "peft_config", {}).get("ref") is not None:
                adapted.module.delete_adapter("ref")
                adapted.module.set_adapter("default")
                _trains_again(adapted)
    if keeper.was_stopped:
        raise StoppedError(f"stopped after step {trainer.state.global_step}")
    return Trained(
        steps=trainer.state.global_step,
        tokens=keeper.tokens,
        seconds=keeper.seconds,
        micro_batch=micro,
    )


def _trains_again(adapted: Adapted) -> None:
    if adapted.method == "lora+embeddings":
        for layer in embeddings_of(adapted.plain):
            layer.weight.requires_grad_(requires_grad=True)


def _is_out_of_memory(error: BaseException) -> bool:
    said = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        "out of memory" in said or "can't allocate memory" in said
    )


def _trainer(
    adapted: Adapted,
    tokenizer: Any,  # noqa: ANN401
    examples: Examples,
    settings: StageSettings,
    *,
    micro: int,
    keeper: Keeper,
) -> Any:  # noqa: ANN401
    common = _common(settings, micro, keeper.folder)
    given: dict[str, Any] = {
        "model": adapted.module,
        "train_dataset": examples.dataset(),
        "processing_class": tokenizer,
        "callbacks": [keeper],
    }
    most = settings.sequence_tokens
    trainer: Any
    if examples.kind == "tokens":
        args = SFTConfig(**common, max_length=most, packing=True, packing_strategy="bfd")
        trainer = _Texts(args=args, **given)
    elif examples.kind == "pairs":
        losses = ["sigmoid", "sft"] if settings.sft_weight else ["sigmoid"]
        weights = [1.0, settings.sft_weight] if settings.sft_weight else None
        args = DPOConfig(
            **common,
            max_length=most,
            beta=settings.beta,
            loss_type=losses,
            loss_weights=weights,
            precompute_ref_log_probs=True,
        )
        trainer = _Pairs(args=args, **given)
    else:
        args = KTOConfig(
            **common,
            max_length=most,
            beta=settings.beta,
            precompute_ref_log_probs=True,
        )
        trainer = _Thumbs(args=args, **given)
    trainer.adapted, trainer.keeper = adapted, keeper
    return trainer


def _common(settings: StageSettings, micro: int, folder: Path) -> dict[str, Any]:
    on_gpu = settings.device.startswith("cuda")
    return {
        "output_dir": str(folder / "checkpoints"),
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.05,
        "num_train_epochs": settings.epochs,
        "max_steps": settings.steps or -1,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": max(1, settings.batch // micro),
        "gradient_checkpointing": settings.activation_checkpointing,
        "bf16": settings.in_bfloat16,
        "use_cpu": not on_gpu,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "seed": settings.seed,
        "data_seed": settings.seed,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "save_total_limit": 1,
        "disable_tqdm": True,
        "report_to": "none",
        "dataloader_pin_memory": on_gpu,
        "dataloader_num_workers": 0,
    }


class _Careful:
    """What our trainers do otherwise than trl's; the left side of each of them."""

    adapted: Adapted
    keeper: Keeper
    optimizer: Any
    model: Any
    args: Any
    state: Any

    def _save(self, output_dir: str | None = None, state_dict: object = None) -> None:  # noqa: ARG002
        target = Path(str(output_dir))
        target.mkdir(parents=True, exist_ok=True)
        self.adapted.save_state(target / STATE_FILE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: object = None) -> None:  # noqa: ARG002
        self.adapted.load_state(Path(resume_from_checkpoint) / STATE_FILE)

    def create_optimizer(self, model: object = None) -> Any:  # noqa: ANN401, ARG002
        if self.optimizer is None:
            rate = self.args.learning_rate
            rows = {id(layer.weight) for layer in embeddings_of(self.adapted.plain)}
            is_full = self.adapted.method == "full"
            groups: dict[bool, list[Any]] = {False: [], True: []}
            for parameter in self.adapted.trained().values():
                groups[id(parameter) in rows and not is_full].append(parameter)
            self.optimizer = torch.optim.AdamW(
                [
                    {"params": groups[False], "lr": rate},
                    {"params": groups[True], "lr": rate * _EMBEDDING_SHARE},
                ],
                lr=rate,
                betas=(0.9, 0.95),
                weight_decay=0.0,
                fused=True,
            )
        return self.optimizer

    def training_step(self, model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:  # noqa: ANN401
        self.keeper.saw(int(inputs["input_ids"].numel()))
        loss = super().training_step(model, inputs, *rest, **named)  # type: ignore[misc]
        if not bool(torch.isfinite(loss)):
            self.keeper.is_sound = False
        return loss


class _Texts(_Careful, SFTTrainer):  # type: ignore[misc]
    pass


class _Pairs(_Careful, DPOTrainer):  # type: ignore[misc]
    def _prepare_dataset(self, dataset: Any, *_: object) -> Any:  # noqa: ANN401
        """Take the rows as they are: they are token ids already."""
        return dataset


class _Thumbs(_Careful, KTOTrainer):  # type: ignore[misc]
    def _prepare_dataset(self, dataset: Any, _: object, args: Any, *__: object) -> Any:  # noqa: ANN401
        """Give each row the answer of its neighbour in the batch, for the KL term of KTO.

        The batches are read in order (Ethayarajh et al., 2024, arXiv 2402.01306).
        """
        size = args.per_device_train_batch_size
        answers = list(dataset["completion_ids"])
        shifted: list[list[int]] = []
        for start in range(0, len(answers), size):
            batch = answers[start : start + size]
            shifted += [*batch[1:], batch[0]]
        return dataset.add_column("KL_completion_ids", shifted)
