#!/bin/bash -l
#PBS -N bf-scan-12
#PBS -A MyProject
#PBS -q by-node
#PBS -l select=2
#PBS -l place=scatter
#PBS -l walltime=1:30:00
#PBS -l filesystems=home:eagle
#PBS -j oe
#PBS -o /project/me/scan/log/block-12.log
#PBS -k doe
#PBS -r n
#PBS -m n

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
    --platform sophia \
    --nodes 2
