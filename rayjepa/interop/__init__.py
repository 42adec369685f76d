"""Weights both ways: our runs, Meta's files, Hugging Face's folders and exported programs.

Nothing here needs Ray, DeepSpeed or transformers: Hugging Face's folders are safetensors and JSON.
"""

from rayjepa.interop.weights import Given, Weights, read_weights, write_weights

__all__ = ["Given", "Weights", "read_weights", "write_weights"]
