#!/bin/bash -l
#SBATCH --job-name=bf-scan-12
#SBATCH --account=MyProject
#SBATCH --partition=batch
#SBATCH --nodes=2
#SBATCH --exclusive
#SBATCH --time=1:30:00
#SBATCH --output=/project/me/scan/log/block-12.log
#SBATCH --open-mode=append
#SBATCH --no-requeue
#SBATCH --export=NONE

unset SLURM_EXPORT_ENV
cd /project/me/scan
export OMP_NUM_THREADS=1
export NOTE='it'"'"'s me'
venv=/project/me/venv

module load frameworks
source "$venv/bin/activate"

exec /project/me/venv/bin/python -P -m balsamfut.pilot.agent \
    --site /project/me/scan \
    --pilot 12 \
    --token bf-scan-12 \
    --platform frontier \
    --nodes 2
