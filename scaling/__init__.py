"""When and where: plan -> stages -> schedule -> results. Importing this package imports neither torch nor Ray."""

__version__ = "0.1.0"
