"""What is trained and measured: tokenizers, generators, data, fidelity.

Knows nothing of plans, Ray, databases or folders: settings and tensors in, tensors and numbers out.
"""
