"""Parse augmentations such as "flip,crop:0.06", and make Keras layers that change or mix pictures.

A recipe's `augment` names one or more of them, separated by commas or "+", each perhaps with a strength. The recipe
imports this module, so Keras is imported only where layers are made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cnnlab.errors import ArgumentError, expect_one_of

if TYPE_CHECKING:
    import keras
    import numpy as np
    import numpy.typing as npt

# Of each the usual strength, the highest one, and what the strength is; `None` for those without one.
Kinds = dict[str, tuple[float | None, float | None, str]]
GEOMETRY: Kinds = {
    "flip": (None, None, "a mirror image half of the time"),
    "shift": (0.1, 1, "share of the side, in fractions of pixels"),
    "crop": (0.125, 1, "share of the side, in whole pixels: a random crop of the picture padded by its reflection"),
    "rotate": (0.03, 0.5, "share of a full turn"),
    "zoom": (0.1, 0.9, "share of the size"),
}
PIXELS: Kinds = {
    "color": (0.2, 1, "share of brightness, contrast, saturation and, a quarter of it, hue"),
    "randaugment": (0.5, 1, "magnitude of two random operations (arXiv:1909.13719)"),
    "cutout": (0.25, 1, "side of the grey square, share of the picture's (arXiv:1708.04552)"),
}
MIXES: Kinds = {
    "mixup": (0.2, 1, "alpha of the beta distribution (arXiv:1710.09412)"),
    "cutmix": (1.0, 1, "alpha of the beta distribution (arXiv:1905.04899)"),
}
# Done to the batches, as it depends on the picture and the epoch, which no layer knows.
ALTERNATING: Kinds = {"altflip": (None, None, "a mirror image in every second epoch, half of the pictures at a time")}
LAYERS: Kinds = {**GEOMETRY, **PIXELS}
KINDS: Kinds = {**ALTERNATING, **LAYERS, **MIXES}
CROP_SHARE = 25 / 32  # of a picture's side, in the first stage of progressive_resizing
PRESETS: dict[str, tuple[str, ...]] = {"none": (), "full": ("flip", "shift", "rotate", "zoom")}


def parse_augment(augment: str) -> dict[str, float | None]:
    """Parse the names and strengths of augmentations, as a recipe has them.

    Returns:
        The strength of each by its name, in the order in which they are applied; `None` for those without one.

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


def mixing_strengths(augment: str) -> dict[str, float | None]:
    """Return the strengths of the augmentations that mix pairs of pictures and their labels, by name.

    They are applied to the batches, before the model.
    """
    return {name: strength for name, strength in parse_augment(augment).items() if name in MIXES}


def has_alternating_flip(augment: str) -> bool:
    """Return whether pictures are mirrored in every second epoch (arXiv:2404.00498).

    So a picture is seen both ways within any two epochs, where random flips show half of the pictures one way twice.
    """
    return "altflip" in parse_augment(augment)


def crop_side(side: int) -> int:
    """Return the pixels a side of the crops that a training with `progressive_resizing` begins with."""
    return round(CROP_SHARE * side)


def augment_pixels(x: keras.KerasTensor, augment: str) -> keras.KerasTensor:
    """Apply the layers among the augmentations to pixels, a Keras tensor `(N, H, W, 3)`, 0 to 255."""
    for name, strength in parse_augment(augment).items():
        if name in LAYERS:
            x = _layer(name, strength)(x)
    return x


def mixing_layers(augment: str, seed: int) -> list[Any]:
    """Make the layers that mix pairs of pictures.

    They take `{"images", "labels"}`, images `(N, H, W, 3)` and labels one-hot `(N, C) float32`.
    """
    import keras

    layers: Any = keras.layers  # its annotations allow no ranges, which its documentation does

    return [
        layers.MixUp(alpha, seed=seed) if name == "mixup" else layers.CutMix((alpha, alpha), seed=seed)
        for name, alpha in mixing_strengths(augment).items()
    ]


def augment_examples(
    images: npt.NDArray[np.uint8], shares: npt.NDArray[np.float32], augment: str, seed: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """Augment pictures `(N, H, W, 3) uint8` with one-hot labels `(N, C) float32` as a training would, to show them.

    Args:
        seed: of the mixing. Of an alternating flip, every second picture is mirrored with an even seed, the others with
            an odd one.

    Returns:
        `(images, shares)` with the same shapes and types; a mixed picture has a share of two classes.
    """
    import keras
    import numpy as np

    if has_alternating_flip(augment):
        images = images.copy()
        images[seed % 2 :: 2] = images[seed % 2 :: 2, :, ::-1]
    given: Any = keras.Input(images.shape[1:], dtype="uint8")
    pixels = keras.ops.cast(augment_pixels(given, augment), "float32")
    seen: Any = keras.ops.convert_to_numpy(keras.Model(given, pixels)(images, training=True))
    for layer in mixing_layers(augment, seed):
        mixed = layer({"images": seen, "labels": shares}, training=True)
        seen, shares = np.asarray(mixed["images"]), np.asarray(mixed["labels"])
    return np.clip(np.rint(seen), 0, 255).astype("uint8"), shares


def _layer(name: str, strength: Any) -> Any:
    import keras

    layers: Any = keras.layers  # its annotations allow no ranges, which its documentation does

    # float32 under any policy, as bfloat16 has not the digits for pixels.
    reflected: dict[str, Any] = {"fill_mode": "reflect", "dtype": "float32"}
    half = (strength or 0) / 2
    nearest = {"interpolation": "nearest", "name": "random_crop"}
    # Keras's saturation changes nothing at 0.5.
    color = {"saturation_factor": (0.5 - half, 0.5 + half), "hue_factor": half / 2, "name": "random_color"}
    erasing = {"factor": (1.0, 1.0), "value_range": (0, 255), "fill_value": 127.5, "name": "random_erasing"}
    makers = {
        "flip": lambda: layers.RandomFlip("horizontal", name="random_flip"),
        "shift": lambda: layers.RandomTranslation(strength, strength, name="random_shift", **reflected),
        "crop": lambda: layers.RandomTranslation(strength, strength, **nearest, **reflected),
        "rotate": lambda: layers.RandomRotation(strength, name="random_rotation", **reflected),
        "zoom": lambda: layers.RandomZoom(strength, name="random_zoom", **reflected),
        "color": lambda: layers.RandomColorJitter((0, 255), strength, strength, dtype="float32", **color),
        "randaugment": lambda: layers.RandAugment((0, 255), factor=strength, name="random_augment", dtype="float32"),
        "cutout": lambda: layers.RandomErasing(scale=(strength**2, strength**2), dtype="float32", **erasing),
    }
    return makers[name]()


def _strength(name: str, text: str) -> float:
    """Parse a strength, and check that it is within its bounds."""
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
