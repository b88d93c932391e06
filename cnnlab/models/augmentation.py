"""Augmentations by name: Keras's own layers, which do nothing outside of training, and what is done to the batches.

`augment` names one or more, separated by commas or "+", each with a strength of its own if wished: "flip,crop:0.06".
Light, for the recipe: Keras is imported where layers are made.
"""

from cnnlab.errors import ArgumentError, expect_one_of

# name: (strength, highest strength, what it is the strength of)
GEOMETRY = {
    "flip": (None, None, "a mirror image half of the time"),
    "shift": (0.1, 1, "share of the side, in fractions of pixels"),
    "crop": (0.125, 1, "share of the side, in whole pixels: a random crop of the picture padded by its reflection"),
    "rotate": (0.03, 0.5, "share of a full turn"),
    "zoom": (0.1, 0.9, "share of the size"),
}
PIXELS = {
    "color": (0.2, 1, "share of brightness, contrast, saturation and, a quarter of it, hue"),
    "randaugment": (0.5, 1, "magnitude of two random operations (arXiv:1909.13719)"),
    "cutout": (0.25, 1, "side of the grey square, share of the picture's (arXiv:1708.04552)"),
}
MIXES = {
    "mixup": (0.2, 1, "alpha of the beta distribution (arXiv:1710.09412)"),
    "cutmix": (1.0, 1, "alpha of the beta distribution (arXiv:1905.04899)"),
}
# Of the batches, as it goes by the picture and the epoch: no layer knows either.
ALTERNATING = {"altflip": (None, None, "a mirror image in every second epoch, half of the pictures at a time")}
LAYERS = {**GEOMETRY, **PIXELS}
KINDS = {**ALTERNATING, **LAYERS, **MIXES}
SMALL = 25 / 32  # of a picture's side, with progressive_resizing
PRESETS = {"none": (), "full": ("flip", "shift", "rotate", "zoom")}


def parse_augment(augment) -> dict:
    """`{name: strength}` in the order in which they are applied.

    Raises:
        ArgumentError: an unknown name, a strength out of bounds, or both ways to mirror.
    """
    given = {}
    for part in augment.replace("+", ",").split(","):
        name, colon, text = part.strip().partition(":")
        if colon and name in KINDS:
            given[name] = _strength(name, text)
            continue
        expect_one_of("augment", part.strip(), (*PRESETS, *KINDS))
        for one in PRESETS.get(name, (name,)):
            given.setdefault(one, KINDS[one][0])
    if {"flip", "altflip"} <= set(given):
        raise ArgumentError(f"Expected flip or altflip. Received both: {augment}. Leave one out.")
    return {name: given[name] for name in KINDS if name in given}


def mixing_strengths(augment) -> dict:
    """Those that mix pairs of pictures with their labels, which happens before the model sees them."""
    return {name: strength for name, strength in parse_augment(augment).items() if name in MIXES}


def has_alternating_flip(augment) -> bool:
    """Whether pictures are mirrored in every second epoch (arXiv:2404.00498): a picture is seen both ways
    within any two epochs, where a coin shows half of the pictures one way twice.
    """
    return "altflip" in parse_augment(augment)


def crop_side(side) -> int:
    """Pixels a side of the crops that a training with `progressive_resizing` begins with."""
    return round(SMALL * side)


def augmented(x, augment):
    """Augmented pixels of a Keras tensor `(N, H, W, 3)`, 0 to 255, without what is done to the batches."""
    for name, strength in parse_augment(augment).items():
        if name in LAYERS:
            x = _layer(name, strength)(x)
    return x


def mixing_layers(augment, seed) -> list:
    """Layers that take `{"images", "labels"}`, labels one-hot `(N, C) float32`."""
    from keras import layers

    makers = {
        "mixup": lambda alpha: layers.MixUp(alpha, seed=seed),
        "cutmix": lambda alpha: layers.CutMix((alpha, alpha), seed=seed),
    }
    return [makers[name](strength) for name, strength in mixing_strengths(augment).items()]


def augment_examples(images, shares, augment, seed):
    """What a training sees of some pictures.

    Args:
        images: `(N, H, W, 3) uint8`.
        shares: `(N, C) float32`, one-hot.
        augment: names, as in a recipe.
        seed: of the mixing; of pictures that alternate, every second one is mirrored with an even seed, the others with
            an odd one.

    Returns:
        `(images, shares)` after one augmentation, the same shapes and types.
    """
    import keras
    import numpy as np

    if has_alternating_flip(augment):
        images = images.copy()
        images[seed % 2 :: 2] = images[seed % 2 :: 2, :, ::-1]
    given = keras.Input(images.shape[1:], dtype="uint8")
    pixels = keras.ops.cast(augmented(given, augment), "float32")
    seen = keras.ops.convert_to_numpy(keras.Model(given, pixels)(images, training=True))
    for layer in mixing_layers(augment, seed):
        mixed = layer({"images": seen, "labels": shares}, training=True)
        seen, shares = (keras.ops.convert_to_numpy(mixed[name]) for name in ("images", "labels"))
    return np.clip(np.rint(seen), 0, 255).astype("uint8"), shares


def _layer(name, strength):
    from keras import layers

    # float32 under any policy, as bfloat16 has not the digits for pixels.
    reflected = {"fill_mode": "reflect", "dtype": "float32"}
    half = (strength or 0) / 2
    makers = {
        "flip": lambda: layers.RandomFlip("horizontal", name="random_flip"),
        "shift": lambda: layers.RandomTranslation(strength, strength, name="random_shift", **reflected),
        "crop": lambda: layers.RandomTranslation(
            strength, strength, interpolation="nearest", name="random_crop", **reflected
        ),
        "rotate": lambda: layers.RandomRotation(strength, name="random_rotation", **reflected),
        "zoom": lambda: layers.RandomZoom(strength, name="random_zoom", **reflected),
        "color": lambda: layers.RandomColorJitter(
            (0, 255),
            brightness_factor=strength,
            contrast_factor=strength,
            saturation_factor=(0.5 - half, 0.5 + half),  # Keras's saturation changes nothing at 0.5
            hue_factor=strength / 4,
            name="random_color",
            dtype="float32",
        ),
        "randaugment": lambda: layers.RandAugment((0, 255), factor=strength, name="random_augment", dtype="float32"),
        "cutout": lambda: layers.RandomErasing(
            factor=(1.0, 1.0),
            scale=(strength**2, strength**2),
            fill_value=127.5,
            value_range=(0, 255),
            name="random_erasing",
            dtype="float32",
        ),
    }
    return makers[name]()


def _strength(name, text):
    _, highest, what = KINDS[name]
    if highest is None:
        raise ArgumentError(f"Expected no strength with {name}. Received: '{text}'. Leave it out.")
    try:
        strength = float(text)
    except ValueError:
        strength = 0.0
    if not 0 < strength <= highest:  # NaN fails too
        raise ArgumentError(
            f"Expected the strength of {name} ({what}) to be above 0 and at most {highest}. Received: '{text}'."
        )
    return strength
