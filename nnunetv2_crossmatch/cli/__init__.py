"""The commands: one thin module each, which parses flags and calls one function; may import every other package."""
