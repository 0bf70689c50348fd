"""How good models are: on pairs with a label, and at finding documents. `textmatch evaluate`."""
