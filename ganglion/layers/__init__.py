"""Modules that any model may use. Tensors are (B, C, H, W) in channels-last memory."""
