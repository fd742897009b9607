"""What networks are trained for: a folder for each task; how any of them is fitted, measured and loaded."""
