"""Compile a model: its optimizer, learning rate schedule, loss and accuracy, as a recipe or keyword arguments say."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, cast

import keras

from cnnlab.models.augmentation import mixing_strengths
from cnnlab.models.model_table import TRAINING
from cnnlab.recipe import ResolvedRecipe
from cnnlab.training.runtime import to_numpy

ONE_CYCLE_START = 25  # how many times lower one-cycle starts, as in fastai and PyTorch
LOOKAHEAD_STEPS = 5  # as in the paper and airbench
LOOKAHEAD_END = 0.07  # share of its peak that the rate falls to with Lookahead, which does the rest, as in airbench
STEPS_PER_EXECUTION = 16  # steps between returns to Python: a dense head trains 1.8 times as fast, results are equal

Optimizer = Literal["adam", "adamw", "sgd", "muon"]
Schedule = Literal["constant", "plateau", "cosine", "one-cycle"]
LearningRateOrSchedule = Any  # Keras takes a float or a LearningRateSchedule, though its annotations say float


def compile_for(
    model: keras.Model,
    recipe: ResolvedRecipe,
    num_images: int,
    epochs: int,
    learning_rate: float | None = None,
    lr_scales: Mapping[str, float] | None = None,
) -> None:
    """Compile a model as its recipe says.

    Args:
        num_images: number of training images.
        epochs: how many epochs the learning rate schedule is spread over.
        learning_rate: replaces the recipe's.
        lr_scales: as in `compile_model`.
    """
    given = {name: TRAINING[name] if getattr(recipe, name) is None else getattr(recipe, name) for name in TRAINING}
    compile_model(
        model,
        **{**given, "learning_rate": learning_rate or given["learning_rate"]},
        steps=math.ceil(num_images / recipe.batch_size) * epochs,
        one_hot=bool(mixing_strengths(recipe.augment)),
        lr_scales=lr_scales,
    )


def compile_model(
    model: keras.Model,
    learning_rate: float,
    weight_decay: float = 0.0,
    schedule: Schedule = "constant",
    steps: int = 0,
    *,
    optimizer: Optimizer = "adam",
    momentum: float | None = None,
    warmup: float | None = None,
    label_smoothing: float = 0.0,
    ema: float = 0.0,
    lookahead: float = 0.0,
    clip_norm: float | None = None,
    bias_lr_scale: float = 1.0,
    one_hot: bool = False,
    lr_scales: Mapping[str, float] | None = None,
) -> None:
    """Compile a model with an optimizer and its learning rate schedule, crossentropy, and accuracy.

    Args:
        learning_rate: the highest learning rate.
        weight_decay: decoupled (AdamW, arXiv:1711.05101); only adam applies it to biases and normalizations too.
        schedule: "constant" and "plateau" (which a callback lowers), "cosine" for a fall to 0 (arXiv:1608.03983,
            without restarts), "one-cycle" for a rise from a 25th, then a fall (arXiv:1708.07120, the rate alone).
        steps: number of optimizer steps of the whole training, for schedules and warmup.
        momentum: Nesterov momentum of sgd and muon.
        warmup: share of the steps in which the learning rate rises.
        label_smoothing: share of each label that is spread over all classes; it is part of `loss` and `val_loss`.
        ema: decay of the exponential moving average of the weights, 0 for none.
        lookahead: decay of the callback `Lookahead`, 0 for none; above it, Keras returns to Python every 5 steps, and
            cosine and one-cycle end at 0.07 of their peak.
        clip_norm: highest norm of all gradients together.
        bias_lr_scale: factor of the learning rate of BatchNormalization's offsets; unless it is 1, weight decay applies
            to them as to other weights.
        one_hot: whether labels are `(N, C)` shares; label smoothing makes them so in any case.
        lr_scales: patterns of weight paths to factors of their learning rate.
    """

    def make(
        scale: float, decay: float = weight_decay, undecayed: tuple[str, ...] = ("bias", "beta", "gamma")
    ) -> keras.optimizers.Optimizer:
        end = LOOKAHEAD_END if lookahead else 0.0
        rate = _learning_rate(float(learning_rate) * scale, schedule, warmup or 0.0, steps, end)
        return _optimizer(optimizer, rate, decay, undecayed, momentum, clip_norm, ema)

    default, by_path = make(1.0), {pattern: make(scale) for pattern, scale in (lr_scales or {}).items()}
    if bias_lr_scale != 1:
        # A step takes decay times learning rate off a weight: the division makes that the same as for other weights.
        by_path[".*/beta"] = make(bias_lr_scale, weight_decay / bias_lr_scale, undecayed=())
    if by_path:
        default = keras.optimizers.MultiOptimizer(keras.optimizers.OptimizerMap(default, by_path), name="by_layer")
    smoothed = keras.losses.CategoricalCrossentropy(label_smoothing=label_smoothing)
    model.compile(
        optimizer=default,
        loss=smoothed if label_smoothing or one_hot else "sparse_categorical_crossentropy",
        metrics=["accuracy"],
        steps_per_execution=LOOKAHEAD_STEPS if lookahead else STEPS_PER_EXECUTION,
    )


def _optimizer(
    name: Optimizer,
    rate: LearningRateOrSchedule,
    weight_decay: float,
    undecayed: tuple[str, ...],
    momentum: float | None,
    clip_norm: float | None,
    ema: float,
) -> keras.optimizers.Optimizer:
    """Make a Keras optimizer, which is named: else Keras numbers it, and equal runs would be logged as different."""
    common: dict[str, Any] = {"name": name, "weight_decay": weight_decay or None, "global_clipnorm": clip_norm}
    common |= {"use_ema": bool(ema), "ema_momentum": ema or 0.99}
    match name:
        case "adam":
            return keras.optimizers.Adam(rate, **common)
        case "adamw":
            optimizer = keras.optimizers.AdamW(rate, **{**common, "weight_decay": weight_decay})
        case "sgd":
            optimizer = keras.optimizers.SGD(rate, momentum or 0.0, nesterov=bool(momentum), **common)
        case "muon":
            # Keras's Muon hands convolutions to AdamW, whose weight decay therefore has to be the same.
            adamw = {"exclude_layers": ["probabilities", "scores"], "adam_weight_decay": weight_decay or None}
            optimizer = keras.optimizers.Muon(rate, momentum=float(momentum or 0), **adamw, **common)
            _orthogonalize_convolutions(optimizer)
    optimizer.exclude_from_weight_decay(var_names=undecayed)
    return optimizer


def _orthogonalize_convolutions(muon: keras.optimizers.Muon) -> None:
    """Make Keras's Muon orthogonalize the updates of convolution kernels too, which it leaves to AdamW.

    A kernel counts as the matrix of what goes into each filter, as Muon's author does
    (https://kellerjordan.github.io/posts/muon). The method of the object is replaced, not the class: a saved model
    names the class of its optimizer, and Keras alone must find it.
    """
    keras_update_step = muon.update_step

    def update_step(gradient: Any, variable: Any, learning_rate: Any) -> None:
        if len(variable.shape) != 4 or variable.shape[-1] == 1:  # a depthwise kernel has no such matrix
            return keras_update_step(gradient, variable, learning_rate)
        momentum = muon.momentums[muon._get_variable_index(variable)]
        muon.assign_add(momentum, gradient + momentum * (muon.momentum - 1))
        update = keras.ops.reshape(gradient + momentum * muon.momentum, (-1, variable.shape[-1]))
        step = muon.lr_adjust(learning_rate * muon.zeropower_via_newtonschulz5(update, muon.ns_steps))
        muon.assign_sub(variable, keras.ops.reshape(step, variable.shape))

    muon.update_step = update_step


def _learning_rate(peak: float, schedule: Schedule, warmup: float, steps: int, end: float) -> LearningRateOrSchedule:
    """Return a schedule that rises to `peak` in the share `warmup` of the steps, and ends at `end` times the peak."""
    schedules, rising = keras.optimizers.schedules, round(warmup * steps)
    if schedule in ("cosine", "one-cycle"):
        if not rising:
            return schedules.CosineDecay(peak, steps, alpha=end)
        start = peak / ONE_CYCLE_START if schedule == "one-cycle" else 0.0
        return schedules.CosineDecay(start, max(1, steps - rising), end, warmup_target=peak, warmup_steps=rising)
    return schedules.PolynomialDecay(0.0, rising, end_learning_rate=peak) if rising else peak


def compile_like(part: keras.Model, model: keras.Model, **changed: Any) -> None:
    """Compile a part of a model as the model is compiled, with its own optimizer object, but for what is `changed`."""
    config = cast("dict[str, Any]", model.get_compile_config())
    arguments = {
        **{"optimizer": model.optimizer, "loss": model.loss, "metrics": config["metrics"]},
        "steps_per_execution": model.steps_per_execution,
    }
    part.compile(**{**arguments, **changed})


def learning_rate_of(optimizer: keras.optimizers.Optimizer) -> float | None:
    """Return an optimizer's learning rate now; of several by layer that of the last, `None` before they are known."""
    inner: Any = getattr(optimizer, "inner_optimizer", optimizer)  # of a LossScaleOptimizer
    several = getattr(inner, "optimizers", [inner])
    return float(to_numpy(several[-1].learning_rate)) if several else None


def compile_params(model: keras.Model) -> dict[str, Any]:
    """Return a compiled model's loss, and its optimizer's name where MLflow's autologging cannot log the optimizer."""
    params = {"loss": getattr(model.loss, "name", None) or getattr(model.loss, "__name__", model.loss)}
    try:
        model.optimizer.get_config()
    except Exception:  # a user's own optimizer, or one chosen by a function of the weight, may have none
        params["optimizer_name"] = model.optimizer.name
    return params


def takes_one_hot_labels(model: keras.Model) -> bool:
    """Return whether a compiled model's loss takes labels `(N, C)` instead of `(N,)`."""
    return isinstance(model.loss, keras.losses.CategoricalCrossentropy)
