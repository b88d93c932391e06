"""The settings of a search: `Search`, which the command line makes without loading TensorFlow."""

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cnnlab.errors import ArgumentError, expect_one_of
from cnnlab.evaluation.score_names import SCORES
from cnnlab.models import custom_model
from cnnlab.recipe import Recipe, RunOptions, custom_arguments
from cnnlab.tuning.spaces import Space, space_text
from cnnlab.tuning.trial_recipes import start_recipe
from cnnlab.utils.argument_types import convert_fields

if TYPE_CHECKING:
    from cnnlab.data.image_dataset import ImageDataset

MOST_PROCESSES = 64  # on one machine
TUNERS: tuple[str, ...] = ("bayesian", "random", "hyperband")
OBJECTIVES: dict[str, str] = {**{f"val_{score}": "max" for score in SCORES}, "val_loss": "min"}


def expect_runnable(name: str | None, workers: int | None, options: RunOptions) -> None:
    """Raise `ArgumentError` where a search cannot have that name or be trained by so many workers."""
    if name and not re.fullmatch(r"[\w-]+", name):
        raise ArgumentError(f"Expected the name to be letters, digits, '-' and '_'. Received: '{name}'.")
    if workers is not None and workers < 1:
        raise ArgumentError(f"Expected workers to be at least 1. Received: {workers}.")
    if options.cluster is None and (workers or 1) > MOST_PROCESSES:
        raise ArgumentError(
            f"Expected at most {MOST_PROCESSES} workers on one machine. Received: {workers}. Use fewer, or a cluster."
        )


@dataclass(frozen=True)
class Search:
    """The settings of a search. Two with equal settings and equal data are the same one: a second start resumes it.

    Attributes:
        recipe: the `Recipe` that everything outside the space comes from.
        space: hyperparameter to a tuple of choices or a `Range`.
        tuner: "bayesian", "random" or "hyperband".
        objective: a key of `OBJECTIVES`, of the weights that the trial ends with.
        finalists: how many of the best recipes are trained afresh.
        final_seeds: how often each, with a new seed every time.
        trials: at most as many; may be raised later.
    """

    recipe: Recipe
    space: Space
    tuner: str = "bayesian"
    objective: str = "val_accuracy"
    finalists: int = 3
    final_seeds: int = 2
    trials: int = 20

    def __post_init__(self) -> None:
        convert_fields(self)
        expect_one_of("tuner", self.tuner, TUNERS)
        expect_one_of("objective", self.objective, OBJECTIVES)
        for name in ("finalists", "final_seeds", "trials"):
            if getattr(self, name) < 1:
                raise ArgumentError(f"Expected {name} to be at least 1. Received: {getattr(self, name)}.")
        if self.tuner == "hyperband" and "epochs" in set(self.space) - set(custom_arguments(self.recipe.model)):
            raise ArgumentError(
                "Expected no epochs in the space of hyperband, which varies them itself up to those of the recipe. "
                "Received: epochs. Leave them out, or use another tuner."
            )
        object.__setattr__(self, "recipe", start_recipe(self.recipe, self.space))
        if not self.recipe.val_fraction:
            raise ArgumentError(
                "Expected val_fraction above 0 in a search, which must not choose by the test set. "
                "Received: val_fraction=0. Leave it out."
            )

    def settings(self, dataset: "ImageDataset") -> dict[str, str]:
        """Write the settings and the data as flat texts, which must be equal for a search to be resumed."""
        space = {f"space.{name}": space_text(values) for name, values in self.space.items()}
        # The digest says which data it is, wherever the folder is.
        left_out = {*self.space, "dataset"}
        recipe = {name: value for name, value in self.recipe.with_defaults().params().items() if name not in left_out}
        rest = {name: getattr(self, name) for name in ("tuner", "objective", "finalists", "final_seeds")}
        source = {}
        if custom_model.is_custom(self.recipe.model):
            source = {"model_source": hashlib.sha256(custom_model.read_source(self.recipe.model).encode()).hexdigest()}
        settings = {**recipe, **source, **rest, **space, "data": dataset.digest}
        return {name: str(value) for name, value in settings.items()}

    def seed(self, *path: int) -> int:
        """Derive a seed from the search's own and from what it is for."""
        import numpy as np

        return int(np.random.SeedSequence([self.recipe.seed, *path]).generate_state(1)[0] % 2**31)
