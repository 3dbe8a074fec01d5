"""What the runtime `transformers` is made of."""
