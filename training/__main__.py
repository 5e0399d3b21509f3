"""Lets torchrun start the command: `torchrun -m training from ...`."""

from training.cli.train import main

if __name__ == "__main__":
    main(prog_name="srp-train")
