"""The bytes that codecs share: column sets, floats, symbols, grids."""
