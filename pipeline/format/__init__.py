"""What a folder of shards is: crops, samples, the index, the manifest, codecs."""
