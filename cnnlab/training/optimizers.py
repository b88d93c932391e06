"""A model's optimizer with its schedule, its loss, and what they ask of the labels."""

import math

import keras

from cnnlab.models.augmentation import mixing_strengths
from cnnlab.models.model_table import TRAINING

ONE_CYCLE_START = 25  # how many times lower one-cycle starts, as in fastai and PyTorch
LOOKAHEAD_STEPS = 5  # as in the paper and airbench
LOOKAHEAD_END = 0.07  # share of its peak that the rate falls to with lookahead, which does the rest, as in airbench
STEPS_PER_EXECUTION = 16  # steps between returns to Python: a dense head trains 1.8 times as fast, results are equal


def compile_for(model, recipe, images, epochs, learning_rate=None, slower=None) -> None:
    """Compile a model as its recipe says, for a training on so many images for so many epochs.

    Args:
        learning_rate: in place of the recipe's.
        slower: as in `compile_model`.
    """
    given = {name: TRAINING[name] if getattr(recipe, name) is None else getattr(recipe, name) for name in TRAINING}
    compile_model(
        model,
        **{**given, "learning_rate": learning_rate or given["learning_rate"]},
        steps=math.ceil(images / recipe.batch_size) * epochs,
        one_hot=bool(mixing_strengths(recipe.augment)),
        slower=slower,
    )


def compile_model(
    model,
    learning_rate,
    weight_decay=0.0,
    schedule="constant",
    steps=None,
    *,
    optimizer="adam",
    momentum=None,
    warmup=None,
    label_smoothing=0.0,
    ema=0.0,
    lookahead=0.0,
    clip_norm=None,
    bias_lr_scale=1.0,
    one_hot=False,
    slower=None,
) -> None:
    """An optimizer with its schedule, crossentropy, and accuracy.

    Args:
        learning_rate: the optimizer's, at its highest.
        weight_decay: decoupled (AdamW, arXiv:1711.05101); other optimizers than adam spare biases and normalisations.
        schedule: "constant" and "plateau" (a callback's work), or "cosine" for a fall to 0 (arXiv:1608.03983, without
            restarts), or "one-cycle" for a rise from a 25th and then the same (arXiv:1708.07120, of the rate alone).
        steps: of the whole training, for the schedule.
        optimizer: "adam", "adamw", "sgd" or "muon".
        momentum: Nesterov's, of sgd and muon.
        warmup: share of the steps in which the rate rises.
        label_smoothing: share of each label that is spread over all classes; it is part of the loss, `val_loss` too.
        ema: decay of the average of the weights that is kept, 0 for none.
        lookahead: above 0, Python gets control every 5 steps, for the `Lookahead` of the training loop, and cosine and
            one-cycle end at 0.07 of their peak.
        clip_norm: highest norm of all gradients together.
        bias_lr_scale: factor of the learning rate of BatchNormalization's offsets; where it is not 1, they decay
            too, as much as other weights.
        one_hot: whether labels are `(N, C)`, as mixed ones are; with label smoothing they are in any case.
        slower: patterns of the paths of weights to factors of their learning rate.
    """

    def made(factor, decay=weight_decay, spared=("bias", "beta", "gamma")):
        common = {
            **{"weight_decay": decay or None, "global_clipnorm": clip_norm},
            **{"use_ema": bool(ema), "ema_momentum": ema or 0.99},
        }
        rate = _schedule(float(learning_rate) * factor, schedule, warmup or 0.0, steps, LOOKAHEAD_END * bool(lookahead))
        # Named, or Keras numbers it within the process and autologging shows equal runs as different.
        match optimizer:
            case "adam":
                return keras.optimizers.Adam(rate, name="adam", **common)
            case "adamw":
                one = keras.optimizers.AdamW(rate, name="adamw", **{**common, "weight_decay": decay})
            case "sgd":
                one = keras.optimizers.SGD(rate, momentum or 0.0, nesterov=bool(momentum), name="sgd", **common)
            case "muon":
                # For Keras convolutions are AdamW's, so that its decay must be theirs.
                head = {"exclude_layers": ["probabilities", "scores"], "adam_weight_decay": decay or None}
                one = keras.optimizers.Muon(rate, name="muon", momentum=float(momentum or 0), **head, **common)
                _orthogonalise_convolutions(one)
        one.exclude_from_weight_decay(var_names=spared)
        return one

    chosen = made(1.0)
    by_path = {pattern: made(factor) for pattern, factor in (slower or {}).items()}
    if bias_lr_scale != 1:
        # What is taken off a weight is its optimizer's decay times its rate.
        by_path[".*/beta"] = made(bias_lr_scale, weight_decay / bias_lr_scale, spared=())
    if by_path:
        chosen = keras.optimizers.MultiOptimizer(keras.optimizers.OptimizerMap(chosen, by_path), name="by_layer")
    sparse = not (label_smoothing or one_hot)
    model.compile(
        optimizer=chosen,
        loss="sparse_categorical_crossentropy"
        if sparse
        else keras.losses.CategoricalCrossentropy(label_smoothing=label_smoothing),
        metrics=["accuracy"],
        steps_per_execution=LOOKAHEAD_STEPS if lookahead else STEPS_PER_EXECUTION,
    )


def _orthogonalise_convolutions(muon):
    """Let Keras's Muon treat a convolution's kernel as the matrix of what goes into each filter, as its author does
    (https://kellerjordan.github.io/posts/muon); Keras leaves it to AdamW.

    Done to the object, since a saved model names the class of its optimizer, which Keras alone must find.
    """
    of_keras = muon.update_step

    def update_step(gradient, variable, learning_rate):
        if len(variable.shape) != 4 or variable.shape[-1] == 1:  # a depthwise one has no matrix
            return of_keras(gradient, variable, learning_rate)
        past = muon.momentums[muon._get_variable_index(variable)]
        muon.assign_add(past, gradient + past * (muon.momentum - 1))
        ahead = keras.ops.reshape(gradient + past * muon.momentum, (-1, variable.shape[-1]))
        step = muon.lr_adjust(learning_rate * muon.zeropower_via_newtonschulz5(ahead, muon.ns_steps))
        muon.assign_sub(variable, keras.ops.reshape(step, variable.shape))

    muon.update_step = update_step


def _schedule(peak, name, warmup, steps, end):
    schedules, rising = keras.optimizers.schedules, round(warmup * steps) if steps else 0
    if name in ("cosine", "one-cycle"):
        if not rising:
            return schedules.CosineDecay(peak, steps, alpha=end)
        first = peak / ONE_CYCLE_START if name == "one-cycle" else 0.0
        return schedules.CosineDecay(first, max(1, steps - rising), end, warmup_target=peak, warmup_steps=rising)
    return schedules.PolynomialDecay(0.0, rising, end_learning_rate=peak) if rising else peak


def compile_like(part, model, **changed) -> None:
    """Compile a part of a model, which has its layers, as the model is, with the model's own optimizer, but for what
    is `changed`.
    """
    given = {
        **{"optimizer": model.optimizer, "loss": model.loss, "metrics": model.get_compile_config()["metrics"]},
        "steps_per_execution": model.steps_per_execution,
    }
    part.compile(**{**given, **changed})


def wants_one_hot(model) -> bool:
    """Whether a compiled model's loss takes labels `(N, C)` instead of `(N,)`."""
    return isinstance(model.loss, keras.losses.CategoricalCrossentropy)
