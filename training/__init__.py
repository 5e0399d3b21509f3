"""srp-train: shards in, figures out."""
