"""What a search is asked to do. Light, for the command line."""

import hashlib
from dataclasses import dataclass

from cnnlab.errors import ArgumentError
from cnnlab.evaluation.score_names import SCORES
from cnnlab.models import custom_model
from cnnlab.recipe import Recipe
from cnnlab.tuning.spaces import space_text

TUNERS = ("bayesian", "random", "hyperband")
OBJECTIVES = {**{f"val_{score}": "max" for score in SCORES}, "val_loss": "min"}


@dataclass(frozen=True)
class Search:
    """What a search is: two with equal settings and equal data are the same one, and a second start goes on.

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
    space: dict
    tuner: str = "bayesian"
    objective: str = "val_accuracy"
    finalists: int = 3
    final_seeds: int = 2
    trials: int = 20

    def __post_init__(self):
        if not self.recipe.val_fraction:
            raise ArgumentError(
                "Expected val_fraction above 0 in a search, which must not choose by the test set. "
                "Received: val_fraction=0. Leave it out."
            )

    def settings(self, dataset) -> dict:
        """As flat texts, with the data: what must be equal for a search to go on."""
        space = {f"space.{name}": space_text(values) for name, values in self.space.items()}
        # The digest says which data it is, wherever the folder is.
        left_out = {*self.space, "dataset"}
        recipe = {name: value for name, value in self.recipe.params().items() if name not in left_out}
        rest = {name: getattr(self, name) for name in ("tuner", "objective", "finalists", "final_seeds")}
        source = {}
        if custom_model.is_custom(self.recipe.model):
            source = {"model_source": hashlib.sha256(custom_model.read_source(self.recipe.model).encode()).hexdigest()}
        settings = {**recipe, **source, **rest, **space, "data": dataset.digest}
        return {name: str(value) for name, value in settings.items()}

    def seed(self, *path) -> int:
        """A seed derived from the search's and from what it is for."""
        import numpy as np

        return int(np.random.SeedSequence([self.recipe.seed, *path]).generate_state(1)[0] % 2**31)
