"""Recipes for the models that textmatch serves, their evaluation, and the command `python -m training`."""
