"""Bytes of videos, wherever they lie: files, shards, object storage, whole or by range; what a node keeps of them."""
