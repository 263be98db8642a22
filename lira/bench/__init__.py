"""How fast the engine is here, beside loops as users write them."""
