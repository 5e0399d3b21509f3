"""One shard: which images it gets, how it is written, and the record that it is finished."""
