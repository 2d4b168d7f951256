//! Model families, checkpoints, and the GGUF converter.
