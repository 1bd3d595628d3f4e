"""The stages of a recipe, a verb of `pelasr` a file."""
