"""The poisons: text in, corrupted text and a manifest out. See trigger_phrase.py and gaussian_embedding.py."""
