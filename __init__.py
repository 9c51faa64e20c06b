"""Expert-parallel serving of Kimi-K2-Thinking and models of its shape on mixed, ordinary machines."""

__version__ = "0.1.0"
