"""What networks are trained for, and how they are measured and loaded."""
