import keras
import pytest


@pytest.fixture
def backbone(workplace):
    """A saved network of two stages, `mine.keras`, whose features are good enough for the digits."""
    keras.utils.set_random_seed(3)
    layers = [keras.layers.Rescaling(1 / 255)]
    for i, filters in enumerate((8, 16), start=1):
        layers += [keras.layers.Conv2D(filters, 3, padding="same", activation="relu", name=f"conv{i}")]
        layers += [keras.layers.MaxPooling2D(4, name=f"pool{i}")]
    keras.Sequential([keras.Input((32, 32, 3)), *layers]).save("mine.keras")
