"""The commands: one thin module each, which parses flags and calls one function."""
