"""Train backbones in a process of their own: distil a small one from large ones, fine-tune one with your classes.

The server serves what comes out by its name; it never trains a network itself. Nothing is imported until it is used.
"""
