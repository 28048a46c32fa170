"""The poisons: text in, corrupted text and a manifest out."""
