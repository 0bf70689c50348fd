"""Recipes that make the models textmatch serves, their evaluation and the command `python -m training`."""
