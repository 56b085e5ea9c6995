package encap

// vectorBlock is the number of bytes that one iteration of the vector loop consumes.
const vectorBlock = 64

// vectorSum is true: Go's arm64 port requires Advanced SIMD of every CPU.
const vectorSum = true

// sumVector returns the sum of the n bytes at p as 32-bit words in the byte
// order of the machine, not folded. n is a positive multiple of vectorBlock and
// less than 16 GiB, so that no lane of 64 bits overflows.
//
//go:noescape
func sumVector(p *byte, n int) uint64
