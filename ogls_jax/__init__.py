"""On-policy self-distillation with outcome-guided logit steering, in JAX."""

__version__ = '0.1.0'
