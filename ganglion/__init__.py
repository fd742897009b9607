"""Vision backbones that replace attention with a recurrence walking the image: VMamba and SparX."""

__version__ = "0.1.0"
