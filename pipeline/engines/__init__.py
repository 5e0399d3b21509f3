"""What runs the tasks of a build, a shard each: the processes of one machine, or Ray."""
