"""srp-data: images in, WebDataset shards of crops and glimpses out."""
