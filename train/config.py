"""The typed form of a training file (configs/**/*.yaml). Key names are those Ascend users know from MindFormers."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Optional

from mindpangu.data.examples import DataConfig
from mindpangu.diffusion.schedule import ScheduleSpec
from mindpangu.parallel.config import ParallelConfig, RecomputeConfig
from mindpangu.spec import ImageEncoderSpec, TextSpec, UNetSpec, VAESpec


@dataclass(frozen=True)
class ContextConfig:
    """Where to run; `seed` fixes the initial weights, the examples and all noise.

    `compute_dtype`: what nets compute in, with float32 weights, moments and normalisations; auto: bf16 on a 910B, fp16
    on a 910A, fp32 on a CPU, or as MINDPANGU_COMPUTE_DTYPE says. `max_device_memory`: how much of an NPU's memory
    MindSpore may take, such as 58GB, for HCCL's buffers lie outside; by default fifteen sixteenths of what is free.
    """

    device_target: Literal["auto", "CPU", "Ascend"] = "auto"
    seed: int = 0
    compute_dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    max_device_memory: Optional[str] = None

    def __post_init__(self) -> None:
        if self.max_device_memory is not None and not re.fullmatch(r"\d+(\.\d+)?GB", self.max_device_memory):
            raise ValueError(
                f"max_device_memory is '{self.max_device_memory}'; a number and GB are needed, such as 58GB"
            )


@dataclass(frozen=True)
class RunnerConfig:
    """`images`: how many to see in all; `batch_size`: how many a step.

    `gradient_accumulation_steps`: each process goes through its share of a batch in so many parts, for less memory.
    """

    images: int
    batch_size: int
    gradient_accumulation_steps: int = 1

    def __post_init__(self) -> None:
        if self.images <= 0 or self.batch_size <= 0:
            raise ValueError(f"images {self.images} and batch_size {self.batch_size} must both be positive")
        if self.gradient_accumulation_steps <= 0 or self.batch_size % self.gradient_accumulation_steps:
            raise ValueError(
                f"gradient_accumulation_steps {self.gradient_accumulation_steps} must divide batch_size "
                f"{self.batch_size}"
            )


@dataclass(frozen=True)
class ScaleSenseConfig:
    """Dynamic loss scaling: the loss is multiplied by `loss_scale_value`, 1 for none of it.

    Where gradients are not finite it is divided by `scale_factor`, down to 1, and after `scale_window` good steps
    multiplied by it.
    """

    loss_scale_value: float = 65536.0
    scale_factor: float = 2.0
    scale_window: int = 1000

    def __post_init__(self) -> None:
        if self.loss_scale_value < 1 or self.scale_factor <= 1 or self.scale_window <= 0:
            raise ValueError("loss_scale_value of at least 1, scale_factor above 1 and scale_window above 0 are needed")


@dataclass(frozen=True)
class RunnerWrapperConfig:
    """Steps whose gradients are not finite are left out; more than `max_skips` of them in a row end the run.

    `scale_sense` None: the loss is scaled where nets compute in fp16, and on a 910A, which has no other products.
    """

    scale_sense: Optional[ScaleSenseConfig] = None
    max_skips: int = 10


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (arXiv 1711.05101) with bias correction; weight decay on matrices and kernels only.

    Type muon: matrices and kernels take Muon's step, with `momentum`, and the rest AdamW's. One learning rate suits
    both. Muon pays for generators trained for long: it needs far fewer images, see docs/train.md.
    """

    type: Literal["adamw", "muon"] = "adamw"
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = 1e-8
    momentum: float = 0.95
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0


@dataclass(frozen=True)
class LRScheduleConfig:
    """Linear warm-up, then cosine down to `final_ratio` of the peak, or constant until the last `cooldown_images`.

    A constant rate's cooldown is linear down to `final_ratio`. All lengths are in images. Unlike cosine's, a constant
    rate's run can be made longer afterwards from a checkpoint before the cooldown.
    """

    learning_rate: float
    type: Literal["constant", "cosine"] = "cosine"
    warmup_images: int = 0
    cooldown_images: int = 0
    final_ratio: float = 0.0

    def __post_init__(self) -> None:
        if self.type == "cosine" and self.cooldown_images:
            raise ValueError("cooldown_images belong to type constant; cosine falls all the way by itself")


@dataclass(frozen=True)
class CallbacksConfig:
    """How often (in images) to log, to draw samples, to measure the loss by noise level and to write a checkpoint;
    each also happens at the end.

    `keep_checkpoint_max`: how many checkpoints are kept; an older one goes only when a newer one has been read back.
    `tensorboard`: event files too (the extra `watch`). `hang_seconds`: a process that is at one thing for longer says
    so, with its rank; None: it does not. `peak_tflops`: a device's, of which `mfu` is the share that a net reaches.
    """

    log_images: int = 1024
    sample_images: int = 16384
    noise_level_images: int = 16384
    checkpoint_images: int = 8192
    keep_checkpoint_max: int = 2
    tensorboard: bool = False
    hang_seconds: Optional[float] = 600.0
    peak_tflops: Optional[float] = None

    def __post_init__(self) -> None:
        if self.keep_checkpoint_max < 1:
            raise ValueError(f"keep_checkpoint_max {self.keep_checkpoint_max}: at least 1 is needed")
        if self.hang_seconds is not None and self.hang_seconds <= 0:
            raise ValueError(f"hang_seconds {self.hang_seconds}: more than 0 is needed, or null")
        if self.peak_tflops is not None and self.peak_tflops <= 0:
            raise ValueError(f"peak_tflops {self.peak_tflops}: more than 0 is needed, or null")


@dataclass(frozen=True)
class VAEConfig:
    """Train the autoencoder on random crops of `crop` pixels: L1 + mse·MSE + edge·|∇ error| + kl·KL."""

    spec: VAESpec
    crop: int = 64
    mse_weight: float = 1.0
    edge_weight: float = 0.5
    kl_weight: float = 3e-4


@dataclass(frozen=True)
class DistillConfig:
    """Text encoders also learn a pretrained multilingual sentence encoder's features (arXiv 2004.09813).

    Captions of either language learn those of the plainest English caption of their scene; `free_texts` a batch, drawn
    from names, tags, `words` frequent words of each language and `sentences` of them, learn their own. `weight`: of
    this loss.
    """

    weight: float = 1.0
    words: int = 12000
    sentences: int = 60000
    free_texts: int = 64


@dataclass(frozen=True)
class ClipConfig:
    """Train both text encoders and one image encoder by contrast (arXiv 2103.00020), on `scenes` scenes of the data.

    Vocabulary sizes of the two specs are upper bounds for the tokenizers, which are trained on the same captions.
    `hard_share`: share of a batch that comes from few subgroups, so that neighbours are told apart.
    """

    text_encoder: TextSpec
    text_encoder_2: TextSpec
    image: ImageEncoderSpec
    scenes: int = 32768
    hard_share: float = 0.5
    distill: Optional[DistillConfig] = None


@dataclass(frozen=True)
class TextDistillationConfig:
    """Train two text encoders to say in any wording what a trained model's say of the plainest English caption.

    `teacher`: the folder of that model, or of its text encoders (knowledge distillation across languages, arXiv
    2004.09813). `load_checkpoint` is a folder of text encoders whose tokenizers and token vectors are taken, or of
    another text distillation, whose students go on; vocabulary sizes are upper bounds. `sentences`: share of captions
    in which a thing's name stands among some of the `words` most frequent words of the language (the extra `zoo`), on
    which the teacher's says nothing. `unknown`: what the teacher has no words for; its captions leave that out, and so
    does the vocabulary. `pooled_weight`: of pooled features' error beside that of tokens'. The runner's images are
    captions.
    """

    teacher: Path
    text_encoder: TextSpec
    text_encoder_2: TextSpec
    unknown: tuple[Literal["count", "size"], ...] = ()
    sentences: float = 0.0
    words: int = 12000
    pooled_weight: float = 0.3


@dataclass(frozen=True)
class ControlNetConfig:
    """Train a ControlNet for the UNet of the checkpoint `base`, which stays as it is.

    It looks at the line drawings (style `line`) of what is in a scene, or, in `edge_share` of the cases, at the edges
    of the picture itself, half of them thick: light lines on black. A net that knows words has `text` beside it.
    `hint_widths`: see `ControlNetSpec`.
    """

    base: Path
    hint_widths: tuple[int, ...]
    edge_share: float = 0.3


@dataclass(frozen=True)
class LoRAConfig:
    """Train updates of `rank` (arXiv 2106.09685), counting alpha / rank, beside the weights of `load_checkpoint`.

    `modules`: those of the attention, or all dense layers of the transformers. `expert`: in a model of several UNets,
    the name of the one that this is; its LoRA then changes no other. `text_encoders`: these learn updates too.
    `beside`: a LoRA that the text encoders have already, as the model will when it draws with both.
    """

    rank: int = 8
    alpha: float = 8.0
    modules: Literal["attention", "all"] = "attention"
    expert: Optional[str] = None
    text_encoders: bool = False
    beside: Optional[Path] = None

    @property
    def changes_text_encoders(self) -> bool:
        """Whether features of the text encoders as they were are of no use."""
        return self.text_encoders or self.beside is not None

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank {self.rank}: at least 1 is needed")


@dataclass(frozen=True)
class PriorConfig:
    """Other pictures of the same kind in a `share` of the batches, so that the kind is not forgotten.

    Prior preservation (DreamBooth, arXiv 2208.12242): `encoded` holds what the model itself drew before.
    """

    encoded: Path
    share: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"share {self.share}: above 0 and below 1 is allowed")


@dataclass(frozen=True)
class DiffusionConfig:
    """Train a UNet on t in [t_min, t_max) of the noise schedule, with frozen autoencoder and text encoders.

    `vae` and `text`: folders that those trainings wrote; without `text` the nets know no words and no sizes. `control`:
    the UNet is trained already, and a ControlNet learns to steer it. `lora`: the UNet of `load_checkpoint` stays, and
    an update of it learns. `sizes`: every size of the model, in the order of their index; the data's sizes are among
    them. `prediction`: what the net's output means. `scenes`: how many scenes of `data` are encoded, once, into the
    latent cache; their captions are drawn afresh each time. `encoded`: in place of both, a folder that `mindpangu data
    encode` made with the same parts; `prior`: beside it, another. `crop_share`: share of the batches that are cut to
    windows of `crop_latents` latents, the texture generator's way of training at a lower resolution.
    `text_map`: a file that a text distillation wrote; the net of `load_checkpoint` knows its teacher, and its weights
    are changed so that it understands the students. `caption_dropout`: share of empty captions, for classifier-free
    guidance. `t_sampling`: t is uniform in its range, or the sigmoid of a Gaussian stretched over it (arXiv 2403.03206,
    section 3.1).
    """

    unet: UNetSpec
    vae: Path
    sizes: tuple[str, ...]
    scenes: int = 0
    encoded: Optional[Path] = None
    prior: Optional[PriorConfig] = None
    text: Optional[Path] = None
    text_map: Optional[Path] = None
    size_dim: int = 0
    control: Optional[ControlNetConfig] = None
    lora: Optional[LoRAConfig] = None
    t_min: int = 0
    t_max: int = 1000
    t_sampling: Literal["uniform", "logit_normal"] = "uniform"
    prediction: Literal["epsilon", "v", "x0"] = "v"
    schedule: ScheduleSpec = field(default_factory=ScheduleSpec)
    crop_share: float = 0.0
    crop_latents: int = 8
    caption_dropout: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.t_min < self.t_max <= self.schedule.steps:
            raise ValueError(f"t_min {self.t_min}, t_max {self.t_max}: 0 ≤ t_min < t_max ≤ {self.schedule.steps}")
        if (self.text is None) == (self.size_dim > 0):
            raise ValueError(f"text {self.text} and size_dim {self.size_dim}: both are needed, or neither")
        if (self.encoded is None) == (self.scenes == 0):
            raise ValueError(f"scenes {self.scenes} and encoded {self.encoded}: one of them is needed")
        if self.encoded is not None and self.text is None:
            raise ValueError("encoded: encoded data has words, and text says which text encoders made their features")
        if self.text_map is not None and (self.text is None or self.lora is not None):
            raise ValueError("text_map: it stands beside text, for all the weights of a net; leave it out")
        if self.prior is not None and self.encoded is None:
            raise ValueError("prior: it stands beside encoded data, and there is none")
        if self.lora is not None and self.lora.changes_text_encoders and self.text is None:
            raise ValueError("lora.text_encoders, lora.beside: the net knows no words; text names the text encoders")
        if self.control is not None and self.lora is not None:
            raise ValueError("control and lora: one of them at a time is trained")
        if self.control is not None and self.crop_share:
            raise ValueError("control: a ControlNet is trained on whole pictures; leave crop_share out")


@dataclass(frozen=True)
class BridgeConfig:
    """Train a latent bridge on pairs of encodings of the same pictures, by two autoencoders, at two sizes.

    `source` and `target`: checkpoints of the autoencoders; `in_size` and `out_size`: "WxH" in pixels. `scenes`: how
    many are encoded, once. Half of them are blurred first, as a model's predictions are while there is much noise.
    """

    source: Path
    in_size: str
    target: Path
    out_size: str
    channels: int
    blocks: int
    scenes: int


@dataclass(frozen=True)
class TrainConfig:
    """One training. Exactly one of `vae`, `clip`, `text_distillation`, `diffusion` and `bridge` says what is trained.

    `data`: on what, but where `diffusion.encoded` says it. `parallel_config`: how the processes that msrun starts share
    the work; without it, each takes its part of every batch. `recompute_config`: less memory for more work, in UNets.
    """

    output_dir: Path
    runner_config: RunnerConfig
    lr_schedule: LRScheduleConfig
    data: Optional[DataConfig] = None
    runner_wrapper: RunnerWrapperConfig = field(default_factory=RunnerWrapperConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    callbacks: CallbacksConfig = field(default_factory=CallbacksConfig)
    context: ContextConfig = field(default_factory=ContextConfig)
    parallel_config: Optional[ParallelConfig] = None
    recompute_config: RecomputeConfig = field(default_factory=RecomputeConfig)
    ema_half_life_images: int = 10000
    load_checkpoint: Optional[Path] = None
    resume_training: bool = True
    vae: Optional[VAEConfig] = None
    clip: Optional[ClipConfig] = None
    text_distillation: Optional[TextDistillationConfig] = None
    diffusion: Optional[DiffusionConfig] = None
    bridge: Optional[BridgeConfig] = None

    def __post_init__(self) -> None:
        tasks = ("vae", "clip", "text_distillation", "diffusion", "bridge")
        given = [name for name in tasks if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"exactly one of {', '.join(tasks)} is needed; found {', '.join(given) or 'none'}")
        if self.text_distillation is not None and self.load_checkpoint is None:
            raise ValueError("text_distillation: load_checkpoint must name a folder of text encoders to start from")
        if self.recompute_config.recompute and self.diffusion is None:
            raise ValueError("recompute_config: only UNets are recomputed, and none is trained here")
        if self.diffusion is not None and self.diffusion.lora is not None and self.load_checkpoint is None:
            raise ValueError("diffusion.lora: load_checkpoint must name the UNet that it changes")
        encoded = None if self.diffusion is None else self.diffusion.encoded
        if (self.data is None) == (encoded is None):
            raise ValueError("data or diffusion.encoded is needed, and not both")


@dataclass(frozen=True)
class FinetuneConfig:
    """A LoRA for a whole model: one training for each of its UNets, in the model's noise levels, one file of all.

    `model`: a name of the zoo or a model folder, which says what the nets are, when each draws, and what conditions
    them; `encoded`, `prior`: as in `DiffusionConfig`. `lora`: text encoders learn with the first net, and stand as they
    then are beside the others; `expert` and `beside` are not given. The other keys are each training's own.
    """

    output_dir: Path
    model: str
    encoded: Path
    runner_config: RunnerConfig
    lr_schedule: LRScheduleConfig
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    prior: Optional[PriorConfig] = None
    caption_dropout: float = 0.1
    runner_wrapper: RunnerWrapperConfig = field(default_factory=RunnerWrapperConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    callbacks: CallbacksConfig = field(default_factory=CallbacksConfig)
    context: ContextConfig = field(default_factory=ContextConfig)
    parallel_config: Optional[ParallelConfig] = None
    recompute_config: RecomputeConfig = field(default_factory=RecomputeConfig)
    ema_half_life_images: int = 10000
    resume_training: bool = True

    def __post_init__(self) -> None:
        if self.lora.expert is not None or self.lora.beside is not None:
            raise ValueError("lora.expert and lora.beside follow from the model here; leave them out")
