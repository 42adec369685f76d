"""The only folder that imports ray: cluster, stream, trainer."""
