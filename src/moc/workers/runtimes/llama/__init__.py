"""What the runtime `llama_cpp` is made of."""
