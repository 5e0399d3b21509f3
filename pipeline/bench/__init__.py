"""Benches: decoders and builds, loaders, codecs, and splits of up to a million samples."""
