"""A shop that does not exist and the people who visit it: data that may be shipped, of any size, from a seed."""
