"""What an artifact costs where it runs: time, memory, size, in a process that has nothing else."""
