"""`transfer`: a pre-trained backbone, frozen or partly frozen, under a new dense head."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cnnlab.errors import ArgumentError, LabError, expect_one_of, first_line
from cnnlab.models.backbones import BACKBONES, too_many_stages

if TYPE_CHECKING:  # Keras is loaded where a model is built
    import keras


def transfer(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    backbone: str,
    weights: str | None = None,
    image_size: int | None = None,
    pooling: str = "average",
    dense_units: int = 0,
    dropout: float = 0.0,
    augment: str = "none",
    preprocessing: str = "own",
    train_blocks: int = 0,
    fine_tune_from: str | None = None,
    frozen_precision: str = "float32",
) -> keras.Model:
    """Build a dense head on the pooled features of a backbone, with the backbone's preprocessing inside.

    Args:
        input_shape: `(height, width, 3)` of the pictures.
        num_classes: number of classes.
        backbone: a name of `BACKBONES`, a `.keras` file, `models:/NAME@ALIAS` (without its head) or `hub:PRESET`.
        weights: of a named backbone: "imagenet" (the default; downloaded once), "random", or a weights file.
        image_size: pixels a side inside the model, by default the pictures' own; smaller ones are enlarged (bicubic).
        pooling: "average", "max" or "flatten".
        dense_units: width of the hidden dense layer, 0 for a linear head.
        dropout: rate before the softmax, 0 for none.
        augment: "none", or names of `cnnlab.models.augmentation`, separated by commas.
        preprocessing: "own" for what the backbone was trained with, "scale" for 0..1.
        train_blocks: how many of the backbone's stages, counted from the top, are trained too. Frozen layers stay in
            inference mode: their BatchNormalization uses its stored statistics, their dropout does nothing.
        fine_tune_from: where a later stage starts to train the backbone, as in `fine_tuned_layers`; frozen here.
        frozen_precision: Keras dtype policy of the frozen layers; those that are trained, now or later, follow the
            global policy.

    Returns:
        A `keras.Model`: `(N, height, width, 3) uint8, 0..255` to `(N, num_classes) float32` probabilities.

    Raises:
        ArgumentError: the images are too small, or there is no such backbone, weights file or stage.
        LabError: the weights cannot be downloaded, or the file is corrupt or of another network.
    """
    import keras

    from cnnlab.models.layers import dense_head, image_input
    from cnnlab.models.model_surgery import attach_backbone, layer_groups_from, trained_layers
    from cnnlab.models.pretrained import load_backbone

    side = image_size or min(input_shape[:2])
    check_transfer(side, backbone=backbone, weights=weights, preprocessing=preprocessing, train_blocks=train_blocks)
    network = load_backbone(backbone, weights or "imagenet", side)
    trained = trained_layers(network, train_blocks, side)
    later = (
        [name for group in layer_groups_from(network, fine_tune_from, side) for name in group] if fine_tune_from else []
    )
    images, x = image_input(input_shape, augment, image_size)
    x = keras.layers.Rescaling(1 / 255, name="scale")(x) if preprocessing == "scale" else network.preprocess(x)
    try:
        features = attach_backbone(network, x, trained, frozen_precision, later)
        outputs = dense_head(features, num_classes, pooling, dense_units, dropout)
    except (ValueError, TypeError, AttributeError) as error:
        if backbone in BACKBONES:
            raise
        raise LabError(  # a network of unknown origin
            f"Expected '{backbone}' to give features of images of {side}x{side} pixels, (H, W, C) or (C,). "
            f"Received: {first_line(error)}. Use another image_size or another model."
        ) from error
    return keras.Model(images, outputs, name=network.name)


def fine_tuned_layers(backbone: str, weights: str | None, start: str, side: int) -> list[list[str]]:
    """Return the names of the layers that fine-tuning from `start` trains, as `layer_groups_from`, for `transfer`."""
    from cnnlab.models.model_surgery import backbone_layer_name, layer_groups_from
    from cnnlab.models.pretrained import load_backbone

    groups = layer_groups_from(load_backbone(backbone, weights or "imagenet", side), start, side)
    return [[backbone_layer_name(name) for name in group] for group in groups]


def check_transfer(
    side: int,
    *,
    backbone: str,
    weights: str | None = None,
    preprocessing: str = "own",
    train_blocks: int = 0,
    fine_tune_from: str | None = None,
    **_: Any,
) -> None:
    """Check the arguments of `transfer`, as far as that is possible before the backbone is loaded.

    Raises:
        ArgumentError: the images are too small for a named backbone, or options do not go together.
    """
    row = BACKBONES.get(backbone)
    if row is None:
        if weights is not None:
            raise ArgumentError(
                f"Expected no weights with a backbone that brings its own. Received: '{weights}'. Leave it out."
            )
        expect_one_of("preprocessing", preprocessing, ("own",))
        return
    if side < row.smallest:
        raise ArgumentError(
            f"Expected images of at least {row.smallest}x{row.smallest} pixels for {backbone}. Received: "
            f"{side}x{side}. Raise image_size."
        )
    counts = {"train_blocks": train_blocks, "fine_tune_from": fine_tune_from}
    for field, count in counts.items():
        if str(count).isdigit() and int(count) > len(row.stages):
            raise ArgumentError(too_many_stages(field, len(row.stages), backbone, count))
    # Runs of earlier versions call VGG16's own preprocessing "vgg16".
    own = ("vgg16", "own") if backbone == "vgg16" else ("own",)
    expect_one_of("preprocessing", preprocessing, (*own, *(("scale",) if row.preprocess else ())))
