"""Synthetic checkpoints: random ternary weights of any size, with a chosen draft acceptance.

They answer one question, how fast an engine would be if its drafts were accepted so often, and
say nothing about text quality.

shapes       the model that a shape's name stands for
vocabulary   a made-up tokenizer
weights      random tensors, and the residual scale that decides how often exits agree
calibration  the residual scale at which the engine measures the acceptance that was asked for
checkpoint   all of it, in a directory
"""
