"""How anything is trained: the run, its folder and its checkpoints, whatever the task is."""
