"""How good a prediction is: distances in latent space, and what is reported of them."""

from rayjepa.objective.latent import Scores, energy, score

__all__ = ["Scores", "energy", "score"]
