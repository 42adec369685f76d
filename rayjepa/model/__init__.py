"""Encoder, predictor and target, and how a prediction is made of them."""

from rayjepa.model.jepa import Jepa, Prediction, Term, build, sizes
from rayjepa.model.predictor import Predictor
from rayjepa.model.target import Target, average_, make_target
from rayjepa.model.vit import Levels, Tokeniser, Vit

__all__ = [
    "Jepa",
    "Levels",
    "Prediction",
    "Predictor",
    "Target",
    "Term",
    "Tokeniser",
    "Vit",
    "average_",
    "build",
    "make_target",
    "sizes",
]
