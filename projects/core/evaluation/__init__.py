"""How well indications are found, in the units of the people who look."""
