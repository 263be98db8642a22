#!/bin/bash
# A run on a SLURM cluster: sbatch --array=0-15 --gpus-per-task=1 --cpus-per-task=8 slurm.sh CONFIG.toml RUN
# Each task of the array knows its share of the models by its own index; the one that trains the last scores and reports.
# RUN is on a file system that all nodes share. Submit the same array again where tasks died: the others have nothing to do.
#SBATCH --job-name=lira
#SBATCH --requeue
# A minute before its time is over a task is told so, and writes what is in training.
#SBATCH --signal=B:TERM@60
#SBATCH --output=lira-%A_%a.log
set -euo pipefail
exec python -m lira run "$1" --run-dir "$2"
