"""The recipe: its sections, how it is read and checked, and the sweep that it asks for."""
