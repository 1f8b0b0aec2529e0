"""What a run is: config and recipes; on the disk: workdir, checkpoints."""
