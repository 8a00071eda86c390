"""The quantiser of splitfc-rd: transforms, one step, and coding by context.

See docs/splitfc-rd.md.
"""
