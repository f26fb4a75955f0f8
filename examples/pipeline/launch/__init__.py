"""Training on a Slurm cluster: what `examples/slurm_train.sh` decides, starts and watches."""
