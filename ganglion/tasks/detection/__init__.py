"""Object detection with masks."""
