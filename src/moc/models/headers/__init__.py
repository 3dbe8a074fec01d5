"""What model files say of themselves at their beginning, read without loading them and without believing them."""
