"""splitfc-rd's quantiser: transforms, one step size and context coding (docs/splitfc-rd.md)."""
