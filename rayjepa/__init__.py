"""rayjepa: pretrain Joint-Embedding Predictive Architectures on video with Ray and DeepSpeed.

Importing the package imports neither torch nor ray: the decoder's child process starts from here.
"""

__version__ = "0.1.0"
