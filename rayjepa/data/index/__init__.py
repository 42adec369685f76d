"""From what a user names to a manifest: listing, lists, shards, probing, what is there twice, a summary."""
