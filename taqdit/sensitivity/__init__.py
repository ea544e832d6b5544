"""How much an error at a site or in a weight moves the velocity: read, predicted, measured."""
