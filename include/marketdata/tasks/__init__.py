"""What the pods run: one module per command of `marketdata`, and the only room that brings the others together."""
