"""The image x crop logits, and every figure that follows from them."""
